"""Keys of a recipe, section by section: default, range, meaning, when each has an effect."""
