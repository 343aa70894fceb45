"""Engine: the distillation step of EnD-UDA, and the run around it."""
