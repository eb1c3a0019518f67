"""prefloop: turn human preferences into a better language model, and close the loop."""

__version__ = "0.1.0"
