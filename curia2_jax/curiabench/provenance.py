"""What has to be known to make a report again: the command, the code, the tasks, and when."""

import datetime
import hashlib
import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from curia2_jax.data.ingest import benchmark_schema


class Provenance(TypedDict):
    """`commit` is "" outside of a checkout, and ends in "+" where files differ from it. `tasks`: hashes of what
    describes each task: task.json and the tables of its splits and pairs."""

    command: str
    date: str
    version: str
    commit: str
    tasks: dict[str, str]


def provenance(data: Path, names: Iterable[str]) -> Provenance:
    """Of tasks `names` of a benchmark, now."""
    return {
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": importlib.metadata.version("curia2-jax"),
        "commit": _commit(Path(__file__).parent),
        "tasks": {name: _digest(data / name) for name in names},
    }


def _digest(task: Path) -> str:
    found = hashlib.sha256()
    named = (benchmark_schema.TASK, f"*/{benchmark_schema.TABLE}", f"*/{benchmark_schema.PAIRS}")
    for path in [path for name in named for path in sorted(task.glob(name))]:
        found.update(path.relative_to(task).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _commit(folder: Path) -> str:
    try:
        said = [
            subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[0] + ("+" if said[1] else "")
