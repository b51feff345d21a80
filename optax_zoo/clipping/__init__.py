"""Clipping rules."""
