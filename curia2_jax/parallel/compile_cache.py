"""The folder in which JAX keeps compiled programs.

It is of one user, for they are machine code that the next run executes, and of bounded size, for JAX removes none.
"""

import contextlib
import os
import pathlib
import stat
import sys

import jax

LIMIT = 20 << 30  # bytes; a step of ViT-g for one GPU takes some 50 MiB


def use(folder: str) -> None:
    """Makes `folder` the cache of this process, or says in one line why there is none. Before the first compilation."""
    if "://" not in folder:  # a bucket has rights of its own
        path = pathlib.Path(folder)
        if problem := claim(path):
            print(f"warning: no compile cache, {path}: {problem}", file=sys.stderr)
            return
        trim(path, LIMIT)
    jax.config.update("jax_compilation_cache_dir", folder)


def claim(path: pathlib.Path) -> str:
    """Makes the folder, for its owner alone; why it cannot be used, if it cannot."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as e:
        return str(e.strerror)
    if found.st_uid != os.getuid():
        return f"belongs to user {found.st_uid}, who could have you run code; write another JAX_COMPILATION_CACHE_DIR"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write there and could have you run code; write chmod 700 {path}"
    return ""


def trim(path: pathlib.Path, limit: int) -> None:
    """Removes the oldest files until the rest has at most `limit` bytes. Who misses one compiles again."""
    kept = 0
    with contextlib.suppress(OSError):  # another process trims, too
        found = [(file, file.stat()) for file in path.iterdir() if file.is_file()]
        for file, about in sorted(found, key=lambda one: one[1].st_mtime, reverse=True):
            kept += about.st_size
            if kept > limit:
                file.unlink(missing_ok=True)
