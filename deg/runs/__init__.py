"""What planners, workers and mergers of a run share: its plan, its folder, its state. No torch in here."""
