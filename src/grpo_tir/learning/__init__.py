"""Turn graded rollouts into optimizer steps."""
