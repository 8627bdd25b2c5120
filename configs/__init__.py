"""One file a model or a recipe; data only."""
