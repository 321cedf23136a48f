"""The container image: made, fetched, checked, and used on a node."""
