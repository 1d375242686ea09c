"""Check a recipe before training, plan its memory, replay a recorded response."""
