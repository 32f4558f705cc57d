"""Bodies as the usual clients send them, made up from scratch: their shapes, not their words."""
