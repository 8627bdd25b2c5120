"""Saves of a run that goes on where its disk cannot take one: it says so, tries again, and gives up at a limit."""

import contextlib
import errno
import gc
import logging
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from curia2_jax.ending import STOPPED, end_now
from curia2_jax.errors import UserError
from curia2_jax.parallel.processes import first_says
from curia2_jax.training import checkpoints
from curia2_jax.training.checkpoints import Checkpoints

PATIENCE = 3  # intervals between checkpoints that may pass without one


class Saver:
    """Knows which step stands on the disk, and why it is not a newer one."""

    def __init__(self, run: pathlib.Path, saved: Checkpoints, newest: int | None, every_steps: int):
        self._run, self._checkpoints, self._limit = run, saved, PATIENCE * every_steps
        self.newest, self.trouble = newest or 0, ""  # the step that a next call would go on from; one line, or none
        self._writing: int | None = None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Begins to save; a failure is found out here or later, and becomes `trouble`."""
        self.finish()
        room = first_says(lambda: int(self._attempt(lambda: checkpoints.check_room(self._run, state))))
        if room and self._attempt(lambda: self._checkpoints.save(state, meta)):
            self._writing = step
        elif not room and not self.trouble:
            self.trouble = "process 0 has no room for a checkpoint"

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

    def _attempt(self, work: Callable[[], None]) -> bool:
        """Whether `work` succeeded; what it left half done is removed, for it takes the room of the next."""
        try:
            work()
            return True
        except (OSError, ValueError, RuntimeError) as e:
            if jax.process_count() > 1 and not isinstance(e, UserError):
                # The others wait for this one inside Orbax, where nothing reaches them; they notice that it is gone.
                said = f"its part of a checkpoint cannot be written ({' '.join(str(e).split())[:160]})"
                again = "call again to go on from the newest checkpoint"
                end_now(STOPPED, f"process {jax.process_index()} stops: {said}; {again}", fault=True)
            if not self._run.is_dir():
                raise UserError(f"--workdir {self._run}: was removed while the run was writing there") from e
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
