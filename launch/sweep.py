"""Run the ablations of a sweep, score each, and write one table and one figure.

    python launch/sweep.py --sweep=configs/ablations.py:NAME --workdir=DIR --corpus=CORPUS [--data=BENCHMARK]

Every run has its own folder in DIR, named by what it is: what is called again with the same config and benchmark goes
on where it was, and what is finished is left out. Seeds are data: SEEDS = {NAME: (0, 1, 2)} beside SWEEPS in the file.
Further words behind the flags are overrides for every stage, as launch/main.py takes them: --config.optim.base_lr=1e-3
and so on stand behind a lone `--`.
Exit codes: 0 done; 1 with --keep-going, a run failed; else that of the command that failed.
"""

import hashlib
import itertools
import json
import pathlib
import re
import runpy
import shlex
import sys
from typing import Any, NamedTuple

from absl import flags

from curia2_jax import files
from curia2_jax.curiabench.tasks import benchmark_folder
from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.ending import STOPPED
from curia2_jax.errors import UserError
from launch import command, sweep_table

_SWEEP = flags.DEFINE_string("sweep", None, "FILE:NAME of a sweep, such as configs/ablations.py:ladder.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.")
_CORPUS = flags.DEFINE_string("corpus", None, "Corpus to train on.")
_DATA = flags.DEFINE_string("data", None, "Benchmark to score on; default: the corpus, if it has labels.")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "Print the commands and run none of them.")
_KEEP_GOING = flags.DEFINE_bool("keep-going", False, "A run that fails is listed and does not end the sweep.")
_ONLY = flags.DEFINE_integer("only", None, "Number of the one run to do, from 0, without the table.", lower_bound=0)
_ARRAY = flags.DEFINE_bool("array", False, "Only print the line that does all runs as a SLURM array.")

Stage = tuple[str, dict[str, Any]]  # config, overrides
FINISHED = "finished.json"  # what a run was finished with


class Run(NamedTuple):
    """One run and seed. `made_of`: hashes of its config and of the benchmark, which tell whether it is finished."""

    name: str
    seed: int
    stages: list[Stage]
    folder: pathlib.Path
    made_of: dict[str, str]

    @property
    def is_finished(self) -> bool:
        try:
            return json.loads((self.folder / FINISHED).read_text()) == self.made_of
        except (OSError, ValueError):
            return False


def stages_of(sweep: str) -> tuple[dict[str, list[Stage]], tuple[int, ...]]:
    """The runs of `FILE:NAME`, name -> (config, overrides) of every stage, and their seeds.

    Raises:
      UserError: no such file, or no such sweep in it.
    """
    file, _, name = sweep.rpartition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"--sweep={sweep}: no file {file!r}; write configs/ablations.py:ladder")
    try:
        found = runpy.run_path(str(path))
    except Exception as e:
        raise UserError(f"--sweep={command.fault_in_file(e) or sweep}; mend the file") from None
    sweeps = found.get("SWEEPS", {})
    if name not in sweeps:
        raise UserError(f"--sweep={sweep}: no sweep {name!r} in {file}; write one of {', '.join(sweeps)}")
    return sweeps[name], tuple(found.get("SEEDS", {}).get(name, (0,)))


def resolved(stage: Stage) -> dict[str, Any]:
    """The whole config of a stage.

    Raises:
      UserError: the file cannot be run, or has no such key.
    """
    path, _, arg = command.at_home(stage[0]).partition(":")
    try:
        config = runpy.run_path(path)["get_config"](arg or None)
        config.lock()
        config.update_from_flattened_dict(stage[1])
    except Exception as e:
        fault = command.fault_in_file(e) or f"{stage[0]}: {str(e.args[0] if e.args else e).splitlines()[0]}"
        raise UserError(f"--sweep: {fault}; mend the sweep or the file") from None
    return config.to_dict()


def slug(name: str) -> str:
    """The readable part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def benchmark_hash(folder: pathlib.Path) -> str:
    """Of the names and sizes of all files of a benchmark, and of the content of its tables."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    tables = [path for path in found if path.suffix == ".json" or path.name == "extra_data.npy"]
    sizes = [[str(path.relative_to(folder)), path.stat().st_size] for path in found]
    return digest([sizes, [hashlib.sha256(path.read_bytes()).hexdigest() for path in tables]])


def plan(
    runs: dict[str, list[Stage]], seeds: tuple[int, ...], words: list[str], workdir: pathlib.Path, data: tuple[str, str]
) -> list[Run]:
    """Every run with every seed. `data`: hashes of the corpus and of the benchmark."""
    out = []
    for (name, stages), seed in itertools.product(runs.items(), seeds):
        stages = [(config, overrides | {"seed": seed}) for config, overrides in stages]
        made_of = {"config": digest([data[0], words, [resolved(stage) for stage in stages]]), "benchmark": data[1]}
        folder = workdir / f"{slug(name)}-seed{seed}-{made_of['config'][:8]}"
        out.append(Run(name, seed, stages, folder, made_of))
    return out


def commands(run: Run, corpus: str, data: str, extra: list[str]) -> list[list[str]]:
    """The command lines of one run: a training for each stage, the export of the last, and its scores."""
    lines, before = [], None
    for number, (config, overrides) in enumerate(run.stages, 1):
        folder = run.folder / f"stage_{number}"
        values = {"data.corpus": corpus} | overrides | ({"init_from": str(before)} if before else {})
        line = ["launch/main.py", f"--config={command.at_home(config)}", f"--workdir={folder}"]
        lines.append([*line, *(f"--config.{key}={value}" for key, value in values.items()), *extra])
        before = folder
    model = run.folder / "huggingface"
    lines.append(["launch/convert.py", f"--checkpoint={before}", f"--output={model}"])
    lines.append(["launch/evaluate.py", f"--model={model}", f"--data={data}", f"--output={run.folder / 'report'}"])
    return lines


def carry_out(run: Run, lines: list[list[str]], *, dry_run: bool, keep_going: bool) -> str:
    """Runs the commands of a run; what failed, or "". A request to stop always ends the sweep."""
    for line in lines:
        try:
            command.call(line, dry_run=dry_run)
        except SystemExit as e:
            if not keep_going or not isinstance(e.code, int) or e.code == STOPPED or e.code > 128:
                raise
            return f"{line[0]} ended with {e.code}"
    if not dry_run:
        files.write_text(run.folder / FINISHED, json.dumps(run.made_of) + "\n")
    return ""


def run(argv: list[str]) -> int:
    """Checks the flags, then runs what is not finished and sums it up."""
    sweep, workdir, corpus = (command.required(flag) for flag in (_SWEEP, _WORKDIR, _CORPUS))
    for word in argv[1:]:
        if not word.startswith("--config."):
            raise UserError(command.stray(word) + "; behind `--` stand overrides such as --config.seed=1")
    (runs, seeds), data = stages_of(sweep), _DATA.value or corpus
    for flag, path in ((_CORPUS, corpus.split(",")[0].split(":")[0]), (_DATA, data)):
        if not pathlib.Path(path).is_dir():
            raise UserError(f"--{flag.name}: no folder {path}")
    folder = benchmark_folder(data)
    if folder is None:  # found out now, not after days of training
        raise UserError(f"--corpus: {data} has no labels to score on; write --data=BENCHMARK")
    hashes = Corpus(corpus).contract["hash"], benchmark_hash(folder)
    planned = plan(runs, seeds, argv[1:], pathlib.Path(workdir), hashes)
    if _ARRAY.value:
        words = [word for word in sys.argv[1:] if word not in ("--array", "--array=true")]
        print(shlex.join(["sbatch", f"--array=0-{len(planned) - 1}", "launch/slurm/sweep.sbatch", *words]))
        return 0
    if _ONLY.value is not None and _ONLY.value >= len(planned):
        raise UserError(f"--only: found {_ONLY.value}; write a number up to {len(planned) - 1}")
    failed: dict[pathlib.Path, str] = {}
    for one in planned if _ONLY.value is None else [planned[_ONLY.value]]:
        print(f"{one.name}, seed {one.seed}: {'done before, ' if one.is_finished else ''}{one.folder}", flush=True)
        if one.is_finished:
            continue
        lines = commands(one, corpus, data, argv[1:])
        if trouble := carry_out(one, lines, dry_run=_DRY_RUN.value, keep_going=_KEEP_GOING.value):
            failed[one.folder] = trouble
    if not _DRY_RUN.value and _ONLY.value is None:
        done: dict[str, list[pathlib.Path]] = {}
        for one in planned:
            if one.folder not in failed:
                done.setdefault(one.name, []).append(one.folder)
        sweep_table.write(pathlib.Path(workdir), done, failed)
    for where, trouble in failed.items():
        print(f"failed: {where}: {trouble}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    command.start(run, takes_words=True)
