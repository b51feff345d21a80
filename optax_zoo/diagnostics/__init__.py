"""What happens during training: numbers read from the state."""
