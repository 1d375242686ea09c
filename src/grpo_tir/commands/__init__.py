"""Commands of `grpo-tir`. Each module has `add_arguments(parser)` and `run(args) -> exit code`."""
