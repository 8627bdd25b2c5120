"""The vision transformer and its projection head: pure functions of (parameters, inputs)."""
