"""The planes that slices lie in."""

import numpy as np

PLANES = ("axial", "coronal", "sagittal")


def in_plane(array: np.ndarray, plane: str) -> np.ndarray:
    """View of an (S, P, L) array as (slices, rows, columns) of a plane: PL towards S, IL towards P, IP towards L."""
    if plane == "axial":
        return array
    if plane == "coronal":
        return array.transpose(1, 0, 2)[:, ::-1]
    return array.transpose(2, 0, 1)[:, ::-1]
