"""A trained model's answers: vectors, similarities, search, and a server for them."""
