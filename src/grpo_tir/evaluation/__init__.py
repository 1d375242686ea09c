"""Measure accuracy on held-out problems and on benchmarks."""
