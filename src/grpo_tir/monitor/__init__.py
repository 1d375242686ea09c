"""Compute, write and show what a run measures."""
