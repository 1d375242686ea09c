"""Run the command line as `python -m grpo_tir`, and so as `accelerate launch -m grpo_tir`."""

from grpo_tir.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
