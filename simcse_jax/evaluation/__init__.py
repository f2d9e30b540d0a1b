"""`encode` to scores: NumPy and SciPy; takes any function from texts to vectors."""
