"""A trace of a few steps, for XProf or TensorBoard's profile tab."""

import pathlib

import jax

FIRST, LAST = 10, 15  # steps of this life of the run that are traced: late enough for compilation and caches


class Profile:
    """Traces steps FIRST to LAST into RUN/profile. Call before every step."""

    def __init__(self, run: pathlib.Path, start: int):
        self._folder, self._start, self._on = run / "profile", start, False

    def before(self, step: int) -> None:
        """Called before step `step` (counted from 1 over all lives of the run) is dispatched."""
        if step - self._start == FIRST:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        elif step - self._start == LAST + 1:
            self.close()

    def close(self) -> None:
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
