"""The machinery that every method shares."""
