"""From a recipe to a trained run, in one call: `fit`, and what the command `train` shares with it."""
