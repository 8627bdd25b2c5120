"""What the checkpoints of a run are worth, before any is used: leftovers go, damaged ones step aside."""

import itertools
import pathlib
import sys
from collections.abc import Iterator

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.training import checkpoints, lock
from curia2_jax.training.checkpoints import Damaged


def clear_leftovers(run: pathlib.Path) -> None:
    """Removes what killed processes have half written. The caller is the only writer of the run."""
    checkpoints.remove_unfinished(run)
    for folder in (run, run / "images"):
        for path in folder.glob(f"*{files.SUFFIX}"):
            path.unlink(missing_ok=True)
    lock.clear_leftovers(run)


def check(run: pathlib.Path, step: int) -> int:
    """Reads all of a checkpoint and returns how many arrays were compared with what was saved, 0 for release 0.1.0.

    Raises:
      Damaged: one of them cannot be read or differs.
    """
    meta = checkpoints.read_meta(run, step)
    items = meta.get("arrays", dict.fromkeys(checkpoints.ITEMS, ()))
    for item in items:
        checkpoints.restore_item(run, step, item)
    return sum(map(len, items.values()))


def newest_good(run: pathlib.Path) -> int | None:
    """The step of the newest checkpoint that is what was saved; those after it are moved to STEP.damaged, with a line.

    Raises:
      UserError: there are checkpoints and none is good; nothing is moved then.
    """
    damaged: dict[int, Damaged] = {}
    for step in reversed(checkpoints.steps(run)):
        try:
            check(run, step)
        except Damaged as e:
            damaged[step] = e
            continue
        for bad, why in damaged.items():
            aside = _aside(checkpoints.directory(run) / str(bad))
            print(f"warning: {why}; moved to {aside.name}, the run goes on from step {step:,}", file=sys.stderr)
        return step
    if damaged:
        why = next(iter(damaged.values()))
        raise UserError(f"{why}; none of {len(damaged)} checkpoints is good; put one back, or write another --workdir")
    return None


def _aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames `folder` to the first free one of 60.damaged, 60.damaged-2, 60.damaged-3, ..."""
    names = itertools.chain([f"{folder.name}.damaged"], (f"{folder.name}.damaged-{n}" for n in itertools.count(2)))
    new = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
    return folder.rename(new)


def verdicts(run: pathlib.Path) -> Iterator[tuple[int, int | Damaged]]:
    """(step, arrays compared, or what is wrong) of every checkpoint, ascending."""
    for step in checkpoints.steps(run):
        try:
            yield step, check(run, step)
        except Damaged as e:
            yield step, e


def tell(run: pathlib.Path) -> int:
    """Prints one line a checkpoint; 1 if one of them is damaged.

    Raises:
      UserError: it is no run.
    """
    checkpoints.parse(str(run))
    damaged = 0
    for step, found in verdicts(run):
        if isinstance(found, Damaged):
            damaged += 1
            print(found)
        else:
            print(f"checkpoint {run}@{step}: whole, {found or 'no'} arrays compared with what was saved")
    return 1 if damaged else 0
