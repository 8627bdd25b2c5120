"""Run the ablations of a sweep one after another, score each, and write one table and one figure.

    python launch/sweep.py --sweep=configs/ablations.py:NAME --workdir=DIR --corpus=CORPUS [--data=BENCHMARK]

Every run has its own folder in DIR; called again, it goes on where it was and leaves out what is finished.
Further words behind the flags are overrides for every stage, as launch/main.py takes them: --config.seed=1 and so on
stand behind a lone `--`.
"""

import csv
import itertools
import pathlib
import re
import runpy

import matplotlib
from absl import flags

from curia2_jax.curiabench import results
from curia2_jax.curiabench.tasks import benchmark_folder
from curia2_jax.errors import UserError
from launch import command

_SWEEP = flags.DEFINE_string("sweep", None, "FILE:NAME of a sweep, such as configs/ablations.py:ladder.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.")
_CORPUS = flags.DEFINE_string("corpus", None, "Corpus to train on.")
_DATA = flags.DEFINE_string("data", None, "Benchmark to score on; default: the corpus, if it has labels.")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "Print the commands and run none of them.")

Interval = tuple[float, float, float]  # value, lower, upper


def stages_of(sweep: str) -> dict[str, list[tuple[str, dict]]]:
    """The runs of `FILE:NAME`: name -> (config, overrides) of every stage.

    Raises:
      UserError: no such file, or no such sweep in it.
    """
    file, _, name = sweep.rpartition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        raise UserError(f"--sweep={sweep}: no file {file!r}; write configs/ablations.py:ladder")
    try:
        sweeps = runpy.run_path(str(path)).get("SWEEPS", {})
    except Exception as e:
        raise UserError(f"--sweep={command.fault_in_file(e) or sweep}; mend the file") from None
    if name not in sweeps:
        raise UserError(f"--sweep={sweep}: no sweep {name!r} in {file}; write one of {', '.join(sweeps)}")
    return sweeps[name]


def slug(name: str) -> str:
    """Folder name of a run."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


def commands(
    run: pathlib.Path, stages: list[tuple[str, dict]], corpus: str, data: str, extra: list[str]
) -> list[list[str]]:
    """The command lines of one run: a training for each stage, the export of the last, and its scores."""
    lines, before = [], None
    for number, (config, overrides) in enumerate(stages, 1):
        folder = run / f"stage_{number}"
        values = {"data.corpus": corpus} | overrides | ({"init_from": str(before)} if before else {})
        line = ["launch/main.py", f"--config={command.at_home(config)}", f"--workdir={folder}"]
        lines.append([*line, *(f"--config.{key}={value}" for key, value in values.items()), *extra])
        before = folder
    model = run / "huggingface"
    lines.append(["launch/convert.py", f"--checkpoint={before}", f"--output={model}"])
    lines.append(["launch/evaluate.py", f"--model={model}", f"--data={data}", f"--output={run / 'report'}"])
    return lines


def run(argv: list[str]) -> int:
    """Checks the flags, then runs what is not finished and sums it up."""
    sweep, workdir, corpus = (command.required(flag) for flag in (_SWEEP, _WORKDIR, _CORPUS))
    for word in argv[1:]:
        if not word.startswith("--config."):
            raise UserError(command.stray(word) + "; behind `--` stand overrides such as --config.seed=1")
    runs, data = stages_of(sweep), _DATA.value or corpus
    for flag, path in ((_CORPUS, corpus.split(",")[0].split(":")[0]), (_DATA, data)):
        if not pathlib.Path(path).is_dir():
            raise UserError(f"--{flag.name}: no folder {path}")
    if benchmark_folder(data) is None:  # found out now, not after days of training
        raise UserError(f"--corpus: {data} has no labels to score on; write --data=BENCHMARK")
    for number, (name, stages) in enumerate(runs.items()):
        folder = pathlib.Path(workdir) / f"{number}_{slug(name)}"
        if (folder / "report" / results.FILE).exists():
            print(f"{name}: done before, {folder}", flush=True)
            continue
        print(f"{name}: {folder}", flush=True)
        for line in commands(folder, stages, corpus, data, argv[1:]):
            command.call(line, dry_run=_DRY_RUN.value)
    if not _DRY_RUN.value:
        summarize(pathlib.Path(workdir), runs)
    return 0


def summarize(workdir: pathlib.Path, runs: dict[str, list]) -> None:
    """DIR/table.md, DIR/table.csv and DIR/picture.png from the report of every run: each head's primary metric."""
    from curia2_jax.curiabench import protocol  # its heads need scikit-learn, a dry run does not

    reports = {name: results.read(workdir / f"{number}_{slug(name)}" / "report") for number, name in enumerate(runs)}
    scoring = protocol.scoring_behind(next(iter(reports.values())))
    metric = scoring.primary.metric
    scores = {
        name: [
            results.defined(report["mean"]["rows"][protocol.TRAINED.name][head.name][metric.name])
            for head in scoring.heads
        ]
        for name, report in reports.items()
    }
    header = ["run", *(f"{head.name}{part}" for head in scoring.heads for part in ("", " low", " high"))]
    table = [[name, *(f"{x:.4f}" for score in found for x in score)] for name, found in scores.items()]
    with (workdir / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *table])
    titles = [head.short for head in scoring.heads]
    lines = ["| " + " | ".join(["run", *titles]) + " |", "|---" * (1 + len(titles)) + "|"]
    for name, found in scores.items():
        lines.append(f"| {name} | " + " | ".join("{:.3f} [{:.3f}, {:.3f}]".format(*score) for score in found) + " |")
    text = f"{metric.title}, mean of the tasks, 95 % interval over patients.\n\n" + "\n".join(lines) + "\n"
    (workdir / "table.md").write_text(text)
    draw(workdir / "picture.png", scores, titles, f"{metric.phrase} (95 % interval over patients)")
    print(f"\n{text}\n{workdir / 'table.md'}, table.csv, picture.png")


def draw(path: pathlib.Path, scores: dict[str, list[Interval]], titles: list[str], label: str) -> None:
    """Intervals of every run, one marker a title: the scores of a run come in the order of the titles."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.55 * len(scores) + 1.2))
    for number, (title, marker) in enumerate(zip(titles, itertools.cycle("os^D"), strict=False)):
        values = [found[number] for found in scores.values()]
        middle = [v[0] for v in values]
        spread = [[v[0] - v[1] for v in values], [v[2] - v[0] for v in values]]
        offset = 0.24 * (number - (len(titles) - 1) / 2)
        places = [i + offset for i in range(len(scores))]
        axis.errorbar(middle, places, xerr=spread, fmt=marker, label=title, capsize=3)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    command.start(run, takes_words=True)
