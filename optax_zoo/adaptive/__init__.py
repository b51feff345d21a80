"""Element-wise and scalar first-order methods."""
