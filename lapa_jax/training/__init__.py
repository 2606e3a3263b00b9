"""State, step, optimizer, checkpoints and metrics of a run; knows no model and no stage."""
