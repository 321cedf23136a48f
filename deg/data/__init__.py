"""Files to arrays and back: videos, labels, statistics, results. No torch in here."""
