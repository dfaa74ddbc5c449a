"""Torch parts: mechanisms, likelihoods, and what the cells say of parameters."""
