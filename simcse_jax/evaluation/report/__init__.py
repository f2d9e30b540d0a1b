"""Show the results as one HTML page that opens offline, and its pictures."""
