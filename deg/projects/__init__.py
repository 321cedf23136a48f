"""A project folder: opened or made, filled, checked, exported."""
