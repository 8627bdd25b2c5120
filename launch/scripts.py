"""The commands as console scripts of an installed package: `curia2-train` is `python -m launch.main`, and so on."""

import functools
import runpy


def run(command: str) -> None:
    """Runs a command of this folder as the main program: its flags, its --help and its exit code are the same."""
    runpy.run_module(f"launch.{command}", run_name="__main__", alter_sys=True)


ingest, train, doctor, convert, evaluate, learned, sweep, plan, bench = (
    functools.partial(run, command)
    for command in ("ingest", "main", "doctor", "convert", "evaluate", "learned", "sweep", "plan", "bench")
)
