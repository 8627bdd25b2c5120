"""Pre-training of Vision Transformers on CT and MRI slices with the Curia-2 recipe."""
