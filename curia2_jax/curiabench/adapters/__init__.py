"""Other people's models: each gets a volume with its affine, and its own preprocessing stands in one place."""
