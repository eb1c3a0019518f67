"""The loops: one file per stage, over the optimiser step in ``loop.py``."""
