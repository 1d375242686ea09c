"""Find tool calls in text, and format the output that the model reads."""
