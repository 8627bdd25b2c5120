"""Slices become crops and masks."""
