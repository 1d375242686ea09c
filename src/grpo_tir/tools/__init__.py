"""Find tool calls in text, and format what the model reads back."""
