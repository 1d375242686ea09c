"""Build one clean training file from raw sources."""
