"""A page that shows how training went and what was predicted in each recording. This package does not use torch."""
