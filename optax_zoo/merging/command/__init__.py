"""The command `optax-zoo merge`: checkpoints on disk merged into one, leaf by leaf."""
