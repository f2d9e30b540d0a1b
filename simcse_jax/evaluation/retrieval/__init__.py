"""Score retrieval: whether the documents nearest to a query are the relevant ones."""
