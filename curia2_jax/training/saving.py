"""Saves of a run that goes on where its disk cannot take one: it says so, tries again, and gives up at a limit."""

import contextlib
import errno
import gc
import logging
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from curia2_jax.ending import STOPPED, end_now
from curia2_jax.errors import UserError
from curia2_jax.parallel.processes import first_where
from curia2_jax.training import checkpoints
from curia2_jax.training.checkpoints import Checkpoints

PATIENCE = 3  # intervals between checkpoints that may pass without one


def check_room(run: str | pathlib.Path, state: Any) -> None:
    """Raises UserError when the disk of a run cannot take one more checkpoint of this TrainState: it has no room for
    one, or takes nothing at all, which only a try can tell of one that became read-only or over its quota."""
    run = checkpoints.directory(run).parent
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    try:
        free = shutil.disk_usage(run).free
        with tempfile.TemporaryFile(dir=run, buffering=0) as file:
            file.write(b"0" * min(4096, free))
    except OSError as e:
        raise UserError(f"{run}: nothing can be written ({e.strerror})") from e
    if needed > free:
        raise UserError(
            f"{run}: a checkpoint takes {needed / 2**20:,.1f} MiB, {free / 2**20:,.1f} MiB are free; make room, then "
            "call again: the run goes on from its newest checkpoint"
        )


class Saver:
    """Knows which step stands on the disk, and why it is not a newer one."""

    def __init__(self, run: pathlib.Path, saved: Checkpoints, newest: int | None, every_steps: int):
        self._run, self._checkpoints, self._limit = run, saved, PATIENCE * every_steps
        self.newest, self.trouble = newest or 0, ""  # the step that a next call would go on from; one line, or none
        self._writing: int | None = None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Begins to save; a failure is found out here or later, and becomes `trouble`."""
        self.finish()
        problem = self._problem(state)
        if (who := first_where(bool(problem))) is not None:
            self.trouble = problem or f"process {who} cannot write a checkpoint"
        elif self._attempt(lambda: self._checkpoints.save(state, meta)):
            self._writing = step

    def finish(self) -> None:
        """Waits for what is being written."""
        if self._writing is not None and self._attempt(self._checkpoints.wait):
            self.newest, self.trouble = self._writing, ""
        self._writing = None

    def poll(self) -> str:
        """The trouble, as far as it is known without waiting."""
        if self._writing is not None and not self._checkpoints.is_writing():
            self.finish()
        return self.trouble and f"not saved since step {self.newest:,}: {self.trouble}"

    def too_long(self, step: int) -> bool:
        """Whether so much work is unsaved that another machine should go on."""
        return bool(self.trouble) and step - self.newest >= self._limit

    def _problem(self, state: Any) -> str:
        """What keeps this process from writing a checkpoint, as far as it is seen before anything is begun, or ""."""
        try:
            check_room(self._run, state)
        except UserError as e:
            self._check_removed(e)
            return str(e)
        return ""

    def _check_removed(self, e: Exception) -> None:
        if not self._run.is_dir():
            raise UserError(f"--workdir {self._run}: was removed while the run was writing there") from e

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Whether `work` succeeded; what it left half done is removed, for it takes the room of the next."""
        try:
            work()
            return True
        except (OSError, ValueError, RuntimeError) as e:
            if jax.process_count() > 1:
                # The others wait for this one inside Orbax, where nothing reaches them; they notice that it is gone.
                said = f"its part of a checkpoint cannot be written ({' '.join(str(e).split())[:160]})"
                again = "call again to go on from the newest checkpoint"
                end_now(STOPPED, f"process {jax.process_index()} stops: {said}; {again}", fault=True)
            self._check_removed(e)
            self.trouble = " ".join(str(e).split())[:160]
            for reason in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO, errno.EDQUOT):  # TensorStore tells it so
                if f"os_error_code='{reason}'" in str(e):
                    self.trouble = f"{self._run}: {errno.errorcode[reason]}"
            self._checkpoints.abandon()
            gc.collect()  # what it has left complains now, where nobody listens, and not at exit
            return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax from printing a traceback for each array that it could not write; the error itself is raised."""
    thread_hook, unraisable_hook, log = threading.excepthook, sys.unraisablehook, logging.getLogger("absl")
    level = log.level

    def thread(args: Any) -> None:
        if not type(args.thread).__module__.startswith("orbax"):
            thread_hook(args)

    def unraisable(args: Any) -> None:
        abandoned = "orbax" in getattr(getattr(args.object, "cr_code", None), "co_filename", "")
        if not abandoned and str(args.exc_value) != "Event loop is closed":
            unraisable_hook(args)

    threading.excepthook, sys.unraisablehook = thread, unraisable
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
        log.setLevel(level)
