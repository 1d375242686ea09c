"""Sample one batch of rollouts with the tool, and reward it."""
