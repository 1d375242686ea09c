"""Read problems and benchmarks, and build prompts."""
