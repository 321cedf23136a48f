"""Stages from beginning to end: plan them, have their units done at a place, merge, and say the result."""
