"""The networks of DeepEthogram, and its weight files."""
