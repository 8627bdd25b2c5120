"""Studies -> slices -> boxes and masks. The NumPy world: nothing here imports JAX or PyTorch."""
