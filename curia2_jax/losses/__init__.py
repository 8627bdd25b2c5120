"""The terms of the objective: pure functions of arrays."""
