"""The engines of inference: from frames to features and probabilities."""
