"""What is wrong with a run, and which key mends it; beside it, what the run has learned since it began.

    python launch/doctor.py RUN
    python launch/doctor.py --record=NAME RUN RUN

Reads RUN/metrics.jsonl and RUN/config.json alone, so it can be asked while the run goes on, from any machine.
docs/learning.md says what the numbers mean. --record writes the ranges of healthy runs of one config, of several
seeds, into telemetry/reference_curves.json: runs of that config are compared with them from then on.
"""

import pathlib

from absl import flags

from curia2_jax.errors import UserError
from curia2_jax.telemetry.diagnosis import diagnose, since_start
from curia2_jax.telemetry.metrics import read
from curia2_jax.telemetry.reference import PATH, outside, record
from launch import command

_RECORD = flags.DEFINE_string("record", None, "Name of a config that the runs are healthy ones of.")


def run(argv: list[str]) -> int:
    """Prints a table of then and now, and a line for each finding."""
    from curia2_jax.training.checkpoints import read_config  # after the flags: a wrong one needs no JAX

    runs = [pathlib.Path(word) for word in argv[1:]]
    if _RECORD.value and runs:
        record(_RECORD.value, [read(one / "metrics.jsonl")[0] for one in runs], read_config(runs[0]), PATH)
        return 0
    if len(runs) != 1:
        raise UserError("doctor.py: write one RUN, the working directory of a run")
    folder = runs[0]
    config = read_config(folder)
    rows, bad = read(folder / "metrics.jsonl")
    if not rows:
        raise UserError(f"{folder / 'metrics.jsonl'}: no rows yet; ask again after config.log.every_steps steps")
    print(f"{folder}: {len(rows):,} rows, the last of step {rows[-1]['step']:,}" + (f"; {bad} damaged" if bad else ""))
    print(f"\n{'':<32}{'first':>10}{'now':>10}")
    for name, first, now in since_start(rows):
        print(f"{name:<32}{first:>10}{now:>10}")
    found = diagnose(rows, config) + outside(rows, config)
    print("" if found else "\nnothing wrong found")
    for one in found:
        print(f"{one.kind}: {one.says}")
    return 0


if __name__ == "__main__":
    command.start(run, takes_words=True)
