"""Plans inference and training: recordings, weights and units; what cannot work is told before a GPU is asked for."""
