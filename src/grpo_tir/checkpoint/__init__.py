"""Save, load and verify checkpoints; record finished rollouts."""
