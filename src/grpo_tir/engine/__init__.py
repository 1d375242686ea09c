"""Generate with continuous batching: the fast twin of `generation`."""
