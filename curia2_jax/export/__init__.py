"""A teacher becomes a folder that PyTorch loads, and comes back."""
