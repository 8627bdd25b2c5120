"""Which rows of a long run stay: all of its beginning and of its newest part, and in between ever fewer."""

from typing import TypeVar

Row = TypeVar("Row", bound=dict)
FULL = 2048  # rows, at each end
BLOCK = FULL // 2  # rows after which it is time again


def thinned(rows: list[Row], newest: int, every: int) -> list[Row]:
    """The rows that stay when `newest` is the newest step, with a row each `every` steps.

    From FULL rows on, as seen from the nearer end, every second one, from 2 FULL on every fourth, and so on: FULL / 2
    for each doubling of the run. What stays is a function of the step and of the newest one alone, rounded down to
    whole BLOCKs, so that a run which was interrupted keeps the same. Who is left out never comes back.
    """
    newest = newest // every // BLOCK * BLOCK

    def stays(row: Row) -> bool:
        number = row["step"] // every
        level = (max(min(newest - number, number), 0) // FULL).bit_length()
        return level == 0 or row["step"] % (every << level) == 0

    return [row for row in rows if stays(row)]


def is_time(step: int, every: int) -> bool:
    """Whether rows may have to go after this step."""
    return step % (every * BLOCK) == 0 and step >= 2 * every * FULL
