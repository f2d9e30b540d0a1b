"""Repeated runs: rows of settings x seeds, run one after the other, into one table."""
