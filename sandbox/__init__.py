"""Files of the sandbox. In a wheel they are the package `grpo_tir._sandbox`."""
