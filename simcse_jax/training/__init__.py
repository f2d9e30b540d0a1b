"""Train: from a configuration and data to a trained state."""
