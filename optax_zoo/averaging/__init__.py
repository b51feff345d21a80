"""Averages of the weights: what to evaluate."""
