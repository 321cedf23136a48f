"""Windows, units, splits, samples and scores: pure functions of numbers, without files, clocks or hidden randomness."""
