"""Frames of many videos, decoded once and kept, and the clips that networks learn from."""
