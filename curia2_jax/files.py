"""A file or a folder is written whole or not at all: under its name there is the old one or the new one, never half."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

SUFFIX = ".partial"  # of what is not whole yet


def is_plain(name: object) -> bool:
    """Whether what a file of others gives as the name of a file beside it is one, and leads nowhere else."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


@contextlib.contextmanager
def whole_file(path: pathlib.Path, *, sync: bool = True) -> Iterator[pathlib.Path]:
    """A path to write to, in the same folder; it becomes `path` when the block ends without an exception, after its
    bytes have reached the disk; without `sync` that is not waited for, which is for large files that can be made again.
    What an exception leaves is removed; what a kill leaves has the name *.PID.partial."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{SUFFIX}")
    try:
        yield partial
        if sync:
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text as UTF-8. Raises OSError."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside `path`; it takes the place of `path`, and of what was there, when the block ends without an
    exception. Raises OSError."""
    path = path.absolute()
    partial, old = (path.with_name(f".{path.name}.{os.getpid()}{suffix}") for suffix in (SUFFIX, ".old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
