"""Sample a batch of rollouts with the tool, and compute its rewards."""
