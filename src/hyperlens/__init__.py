"""HyperLens."""
