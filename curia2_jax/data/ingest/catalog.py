"""What a plan remembers of every file while it is made: a SQLite file in `CORPUS/work/`, so that memory does not grow
with the archive. Names are kept as Python has them, bytes that are not UTF-8 included."""

import collections.abc
import contextlib
import dataclasses
import errno
import itertools
import pathlib
import sqlite3

from curia2_jax.data.readers import series, zips
from curia2_jax.data.readers.archive import Refused
from curia2_jax.data.readers.series import Found

_PAGE = 4096  # rows that are in memory at once
_TABLES = """
CREATE TABLE IF NOT EXISTS files (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS taken (name BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS found (
  file BLOB, format BLOB, series BLOB, frames INT, slices INT, depth INT, owner BLOB, stack BLOB, place REAL, size INT
);
CREATE TABLE IF NOT EXISTS scans (name BLOB, series BLOB, frame INT, slices INT, scan BLOB);
CREATE TABLE IF NOT EXISTS refused (name BLOB, reason BLOB, detail BLOB, files INT, size INT, example BLOB);
"""


class Catalog:
    """The catalog in the file `path`, as a context manager.

    Raises:
      OSError: it cannot be written.
    """

    def __init__(self, path: pathlib.Path):
        with _told(path):
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.executescript(_TABLES)
            # It can be made again, and what is sorted stays on the disk that has room for it.
            for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-4096", "temp_store=FILE"):
                self._db.execute(f"PRAGMA {setting}").fetchall()
            self._db.execute(f"PRAGMA temp_store_directory='{str(path.parent).replace(chr(39), chr(39) * 2)}'")
        self._path = path
        self.files, self.members = _Names(self, "files"), _Names(self, "members")

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(self, *_) -> None:
        self._db.close()

    def insert(self, table: str, rows: collections.abc.Iterable[tuple]) -> None:
        """Adds rows, a page in memory at a time; a file that is there stays."""
        rows = iter(rows)
        while page := [tuple(map(_stored, row)) for row in itertools.islice(rows, _PAGE)]:
            places = ",".join("?" * len(page[0]))
            with _told(self._path):
                self._db.execute("BEGIN")
                self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({places})", page)
                self._db.execute("COMMIT")

    def rows(self, query: str, *values: object) -> collections.abc.Iterator[tuple]:
        """Rows of a query, a page in memory at a time."""
        with _told(self._path):
            cursor = self._db.execute(query, tuple(map(_stored, values)))
            while page := cursor.fetchmany(_PAGE):
                for row in page:
                    yield tuple(map(_read, row))

    def add(self, items: collections.abc.Iterable[Found | Refused]) -> None:
        """Adds what files are."""
        items = list(items)
        found = [item for item in items if isinstance(item, Found)]
        self.insert("found", [dataclasses.astuple(item) for item in found])
        self.insert("members", [(item.file,) for item in found if f"{zips.SUFFIX}{zips.INSIDE}" in item.file.lower()])
        self.insert("refused", [item for item in items if isinstance(item, Refused)])

    def take_out(self, names: collections.abc.Iterable[str]) -> tuple[int, int]:
        """Takes files out of what was found; returns how many there were, and their bytes."""
        self.insert("taken", ((name,) for name in names))
        ((count, size),) = self.rows("SELECT COUNT(*), TOTAL(size) FROM found WHERE file IN taken")
        with _told(self._path):
            self._db.execute("DELETE FROM found WHERE file IN taken")
        return count, int(size)

    def series(self) -> collections.abc.Iterator[list[Found]]:
        """The files of each series."""
        rows = self.rows("SELECT * FROM found ORDER BY format, series, file")
        for _, group in itertools.groupby((Found(*row) for row in rows), lambda item: (item.format, item.group)):
            items = list(group)
            if len(items) > 1 or not items[0].stack:
                yield from series.by_owner(items)
        rows = self.rows(
            "SELECT * FROM found GROUP BY format, series HAVING COUNT(*) = 1 AND stack != ? "
            "ORDER BY format, stack, file",
            "",
        )
        for _, group in itertools.groupby((Found(*row) for row in rows), lambda item: (item.format, item.stack)):
            yield from series.joined(list(group))

    def refused(self) -> collections.abc.Iterator[Refused]:
        """What was refused, by name."""
        return (Refused(*row) for row in self.rows("SELECT * FROM refused ORDER BY name, reason, detail"))


class _Names:
    """The names of all files, or of all members of archives that belong to a scan, in order."""

    def __init__(self, catalog: Catalog, table: str):
        self._catalog, self._table = catalog, table

    def __len__(self) -> int:
        ((count,),) = self._catalog.rows(f"SELECT COUNT(*) FROM {self._table}")
        return count

    def __contains__(self, name: object) -> bool:
        return any(True for _ in self._catalog.rows(f"SELECT 1 FROM {self._table} WHERE name = ?", name))

    def __iter__(self) -> collections.abc.Iterator[str]:
        # Page by page, since other rows are written meanwhile.
        last = ""
        while page := list(
            self._catalog.rows(f"SELECT name FROM {self._table} WHERE name > ? ORDER BY name LIMIT ?", last, _PAGE)
        ):
            for (last,) in page:
                yield last


def _stored(value: object) -> object:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _read(value: object) -> object:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


@contextlib.contextmanager
def _told(path: pathlib.Path) -> collections.abc.Iterator[None]:
    """SQLite's errors as those of the disk that they are."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(code, str(error), str(path)) from error
