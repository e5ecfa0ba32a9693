"""What each idea is worth: all objectives on one small backbone, with intervals over seeds and queries."""
