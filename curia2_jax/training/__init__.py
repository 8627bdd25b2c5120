"""The train step, its state, and the one loop."""
