"""The line of a run on a terminal: rewritten in place, with a bar. Elsewhere lines follow each other as they are."""

import os
import time
from collections.abc import Mapping
from typing import Self, TextIO

from curia2_jax.telemetry.progress import Progress, duration, learned

BAR = 20  # characters
PATIENCE = 0.2  # seconds between two drawings


class Live:
    """Shows what `Progress` knows on `stream`. A context: its end leaves the cursor on a line of its own."""

    def __init__(self, progress: Progress, stream: TextIO):
        self.progress, self._stream, self._is_terminal = progress, stream, stream.isatty()
        self._drawn, self._open, self._said = 0.0, False, ""
        self._scalars: dict[str, float] = {}
        self._figures: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def row(self, scalars: Mapping[str, float], figures: Mapping[str, float], wrong: str) -> None:
        """A row of metrics, and what is wrong, if something is: said once where the line is rewritten."""
        self._scalars |= scalars  # what is not measured at every row stays
        self._figures = dict(figures)
        if not self._is_terminal:
            print(self.progress.line(scalars, figures) + (f"  {wrong}" if wrong else ""), file=self._stream, flush=True)
            return
        if wrong and wrong != self._said:
            self._write(f"{wrong}\n")
        self._said = wrong
        self.step(self.progress.step, now=True)

    def step(self, step: int, now: bool = False) -> None:
        """A step is done: the bar moves, at most every PATIENCE seconds."""
        if not self._is_terminal or not (now or time.monotonic() - self._drawn > PATIENCE):
            return
        self._drawn = time.monotonic()
        columns = os.get_terminal_size(self._stream.fileno()).columns or 80
        self._write(self.text(step)[: columns - 1])
        self._open = True

    def text(self, step: int) -> str:
        """The whole line after `step` steps."""
        total = self.progress.total_steps
        full = BAR * step // total
        parts = [f"[{'#' * full}{'.' * (BAR - full)}] {step / total:4.0%}  step {step:,}/{total:,}"]
        if self._figures:
            figures = self._figures
            parts += [f"{figures['images_per_s']:.1f} img/s", f"wait {figures['data_wait']:.0%}"]
            parts.append(f"loss {self._scalars['loss']:.4f}{learned(self._scalars)}")
            left = figures["eta_s"] * (total - step) / max(total - self.progress.step, 1)
            parts.append(f"ETA {duration(left)}")
        return "  ".join(parts)

    def end(self) -> None:
        """Leaves the line as it is; what is printed next stands below."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
        self._open = False

    def _write(self, text: str) -> None:
        self._stream.write("\r\x1b[2K" + text)  # the whole line is erased first
        self._stream.flush()
