"""Checkpoints merged into one: pure functions of trees of weights."""
