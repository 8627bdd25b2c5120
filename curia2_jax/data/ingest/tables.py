r"""CSV tables: those that users write, and those that an ingest leaves for people.

In a table for people, bytes of a name that are not UTF-8 are shown as \xfc, and a cell that a spreadsheet would take
for a formula (it begins with = + - @, a tab or a carriage return) has a ' in front. Reading takes that off again.
"""

import collections.abc
import csv
import itertools
import os
import pathlib
import re

from curia2_jax import files
from curia2_jax.errors import UserError

_FORMULA = tuple("=+-@\t\r")
_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_SEPARATOR = re.compile("(?i:sep)=([,;\t])")  # the first line of a table, as Excel takes it


def shown(name: str) -> str:
    r"""A file name as people can read it and UTF-8 can hold it: a byte of it that is not UTF-8 becomes \xfc."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def cell(value: object) -> str:
    """A value as the cell of a table, never a formula."""
    text = shown(str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def write(path: pathlib.Path, head: tuple[str, ...], rows: collections.abc.Iterable[tuple]) -> None:
    """Writes a table as UTF-8. Raises OSError."""
    with files.whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows([cell(value) for value in row] for row in rows)


def read(path: str | pathlib.Path, flag: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a user's table with at least `columns`, none of whose cells in them is empty. Its cells are parted by
    commas, or by semicolons or tabs, as spreadsheets write them where numbers have decimal commas. A byte order mark is
    no part of the first name, and a byte that is not UTF-8 is that byte of a file name.

    Raises:
      UserError: the file cannot be read, or a column or a cell is missing.
    """
    wanted = f"write a CSV with the columns {','.join(columns)}"
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline()
            separator = _separator(first, columns)
            reader = csv.reader(itertools.chain([first], file), delimiter=separator)
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (OSError, csv.Error) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error}); {wanted}") from None
    if lines and _SEPARATOR.fullmatch(separator.join(lines[0][1])):
        del lines[0]
    if not lines:
        raise UserError(f"{flag} {path}: found no rows; {wanted}")
    head = [name.strip().lower() for name in lines[0][1]]
    missing = [name for name in columns if name not in head]
    if missing:
        raise UserError(f"{flag} {path}: no column {missing[0]!r}, found {shown(','.join(head))[:200]}; {wanted}")
    rows = []
    for number, row in lines[1:]:
        if len(row) > len(head):
            raise UserError(
                f"{flag} {path}: line {number} has {len(row)} cells, the first has {len(head)}; "
                f"write cells with {_SEPARATORS[separator]} in them in quotation marks"
            )
        named = dict(zip(head, (_native(text) for text in row), strict=False))
        empty = [name for name in columns if not named.get(name)]
        if empty:
            raise UserError(f"{flag} {path}: line {number} has no {empty[0]}; write one, or leave the line out")
        rows.append(named)
    return rows


def _separator(first: str, columns: tuple[str, ...]) -> str:
    """What parts the cells of a table whose first line is `first`: what that says, or what finds the columns in it."""
    said = _SEPARATOR.fullmatch(first.strip("\r\n"))
    heads = {mark: [name.strip(' "\r\n').lower() for name in first.split(mark)] for mark in _SEPARATORS}
    found = next((mark for mark, head in heads.items() if set(columns) <= set(head)), ",")
    return said[1] if said else found


def read_own(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a table that `write` wrote, as they were shown. Raises OSError."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: _plain(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _plain(text: str) -> str:
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA) else text


def _native(text: str) -> str:
    """A cell as Python names files here, whatever the encoding of the locale."""
    return os.fsdecode(_plain(text.strip()).encode("utf-8", "surrogateescape"))
