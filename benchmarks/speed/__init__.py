"""prefloop and TRL in turn, on the same models and rows, beside the machine's limit: python -m benchmarks.speed."""
