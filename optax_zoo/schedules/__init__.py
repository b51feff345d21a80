"""Learning rates as functions of the step, batch sizes as functions of the gradients."""
