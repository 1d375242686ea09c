"""Generate responses: the readable reference implementation."""

from grpo_tir.generation.protocol import Generator, Request, Stopped

__all__ = ["Generator", "Request", "Stopped"]
