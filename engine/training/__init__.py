"""Training: the loop, its state, the run folder."""
