"""The command `optax-zoo race`: every optimizer, the same budget, real data."""
