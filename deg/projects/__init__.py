"""Project folders: open or create them, add recordings, check them, and export results."""
