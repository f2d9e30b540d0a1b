"""What every room needs and none is about: errors, whole files, caches, the Hub, compiled programs."""
