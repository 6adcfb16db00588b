"""Training: the recipe of the reference model."""
