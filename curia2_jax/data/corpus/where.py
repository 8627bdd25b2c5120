"""Conditions on index columns, such as "modality=CT,plane=axial|coronal,spacing_z<=5"."""

import operator
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curia2_jax.data.corpus import index
from curia2_jax.errors import UserError

_SIGNS = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def matching(
    where: str,
    numbers: Callable[[str], np.ndarray],
    codes: Callable[[str], tuple[np.ndarray, pa.StringArray]],
) -> np.ndarray | None:
    """Slices that meet all conditions, bool (N,); None when there is no condition.

    Args:
      where: the conditions, separated by commas.
      numbers: values (N,) of a column of numbers.
      codes: codes (N,) of a text column, and the strings that they stand for.

    Raises:
      UserError: no such column, or no such comparison.
    """
    keep = None
    for condition in filter(None, (c.strip() for c in where.split(","))):
        chosen = _matching(condition, numbers, codes)
        keep = chosen if keep is None else np.logical_and(keep, chosen, out=keep)
    return keep


def _matching(
    condition: str,
    numbers: Callable[[str], np.ndarray],
    codes: Callable[[str], tuple[np.ndarray, pa.StringArray]],
) -> np.ndarray:
    match = re.fullmatch(r"(\w+)\s*(!=|<=|>=|=|<|>)\s*(.*)", condition)
    if not match or match[1] not in index.SCHEMA.names:
        names = ", ".join(index.SCHEMA.names)
        raise UserError(f"where: found {condition!r}; write COLUMN=VALUE, !=, <, <=, > or >= with a column of {names}")
    name, sign, value = match.groups()
    if name in index.TEXT:
        if sign not in ("=", "!="):
            raise UserError(f"where: found {condition!r}; a text column takes = or !=")
        column, vocabulary = codes(name)
        chosen = pc.is_in(vocabulary, value_set=pa.array([v.strip() for v in value.split("|")], pa.string()))
        return (chosen.to_numpy(zero_copy_only=False) == (sign == "="))[column]
    try:
        return _SIGNS[sign](numbers(name), float(value))
    except ValueError:
        raise UserError(f"where: found {condition!r}; write a number after {sign}") from None
