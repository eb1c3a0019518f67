"""Sampling from a policy, and the batch that comes out."""
