"""Generate with continuous batching: the fast implementation of `generation`'s interface."""
