"""From the training table to a bundle: splits in time, transform graph, model, evaluation."""
