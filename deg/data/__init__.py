"""Reads files into arrays and writes them back: videos, labels, statistics, results. Nothing here imports torch."""
