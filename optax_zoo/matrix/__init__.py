"""Methods that see a weight as a matrix."""
