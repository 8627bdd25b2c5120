"""Slices at rest."""
