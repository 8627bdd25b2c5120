"""The bad steps of a run, and what was done about them: RUN/bad_steps.jsonl.

It is no log: after a rewind the run goes on with other batches, and which, only this file knows. So the batch of a step
is a function of the seed, the step and this file, and a run that is called again reads it first.
"""

import json
import pathlib
from typing import Any

from curia2_jax import files
from curia2_jax.errors import UserError
from curia2_jax.parallel.processes import first_alone, first_numbers

NAME = "bad_steps.jsonl"


class Journal:
    """The bad steps up to now: how many, and which batches are passed over, the same in every process."""

    def __init__(self, run: pathlib.Path, start: int):
        """For a life that goes on from `start`: steps that were skipped after it will be met again.

        Raises:
          UserError: a line is damaged.
        """
        self._path = run / NAME
        self._rows: list[dict[str, Any]] = []  # process 0 has those of earlier lives, too

        def numbers() -> list[int]:
            rows = read(self._path)
            self._rows = [row for row in rows if row["done"] == "rewind" or row["step"] <= start]
            windows = [(row["from"], row["batches"]) for row in self._rows if row["done"] == "rewind"]
            return [len(self._rows), *(number for window in windows for number in window)]

        self.count, *windows = first_numbers(numbers)
        self.passed_over = list(zip(windows[::2], windows[1::2], strict=True))

    def add(self, row: dict[str, Any]) -> None:
        """Notes one more; every process has to call it, with the row of process 0.

        Raises:
          UserError: in every process, if the disk takes no more; the step is not noted then.
        """
        self.count += 1
        self._rows.append(row)
        first_alone(self._write)

    def _write(self) -> None:
        try:
            files.write_text(self._path, "".join(json.dumps(row) + "\n" for row in self._rows))
        except OSError as e:
            again = "without it the run would not find its batches; make room there, then call again"
            raise UserError(f"{self._path}: a bad step cannot be noted ({e.strerror}); {again}") from e


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a journal: `step`, what was `done` ("skip" or "rewind"), `metrics` and the images of the `batch`; of
    a rewind, `from` which step the run went on and how many `batches` it passes over from there.

    Raises:
      UserError: a line is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            keys = ("step", "from", "batches") if row["done"] == "rewind" else ("step",)
            rows.append(row | {key: int(row[key]) for key in keys})
        except (ValueError, TypeError, KeyError) as e:
            raise UserError(f"{path}: line {number} is damaged; the run needs it to find its batches: mend it") from e
    return rows
