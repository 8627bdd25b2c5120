"""Volumes become slices."""
