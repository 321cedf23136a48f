"""How far runs and launches have come, what they say, and why they are not done."""
