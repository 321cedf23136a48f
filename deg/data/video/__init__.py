"""One video, its frames read by number: how it is stored, and how another process decodes it and may crash."""
