"""The tiny arithmetic world and the base model of `make train`."""
