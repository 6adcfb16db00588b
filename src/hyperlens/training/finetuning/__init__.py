"""Fine-tuning with an eye on effort: the recipe, the examples, what the base's effort was, and the trainer."""
