"""Stages from beginning to end: plan, have it done at a place, merge, tell."""
