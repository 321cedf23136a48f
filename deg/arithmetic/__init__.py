"""Which frames, units, parts, samples and scores: pure functions of numbers, without files, clocks or chance."""
