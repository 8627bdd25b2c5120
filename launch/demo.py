"""The whole program on this machine: studies -> corpus -> pre-training -> PyTorch folder -> report.

    make demo                 synthetic studies; minutes on two cores
    make demo INPUT=DIR       a folder of real scans; label maps in it are used if there are any
    make evidence             three seeds, longer; does pre-training beat random weights on studies it never saw?

It runs the commands that you would run, and prints them. Called again, it goes on where it was.
"""

import hashlib
import os
import pathlib

from absl import flags

from curia2_jax.curiabench import results
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError
from launch import command

_INPUT = flags.DEFINE_string("input", None, "Folder of studies; default: synthetic ones.")
_PATIENTS = flags.DEFINE_string("patient-regex", None, "Passed on to launch/ingest.py.")
_EVIDENCE = flags.DEFINE_bool("evidence", False, "Three seeds on synthetic studies.")
_OUTPUT = flags.DEFINE_string("output", "demo", "Folder for everything that is made.")
_STEPS = flags.DEFINE_integer("steps", None, "Training steps; default: 300, with --evidence 400.", lower_bound=1)
# Studies to pre-train on and labelled ones to score on: of the demo, and of the evidence, which wants narrow intervals.
DEMO_STUDIES, EVIDENCE_STUDIES = (32, 24), (64, 120)
LABELLED_SEED = 10_000  # no study of it is pre-trained on


def ingest(studies: pathlib.Path, corpus: pathlib.Path) -> pathlib.Path:
    """A corpus of a folder, with the labels, names and patients that lie in it."""
    line = ["launch/ingest.py", f"--input={studies}", f"--output={corpus}"]
    for flag, name in (("labels", "labels.csv"), ("label-names", "label_names.json")):
        if (studies / name).is_file():
            line.append(f"--{flag}={studies / name}")
    command.call([*line, *([f"--patient-regex={_PATIENTS.value}"] if _PATIENTS.value else [])])
    return corpus


def phantom_studies(folder: pathlib.Path, count: int, seed: int) -> pathlib.Path:
    """Synthetic studies in `folder`, made once."""
    if not (folder / "label_names.json").exists():
        print(f"making {count} synthetic studies in {folder}", flush=True)
        phantom.write_studies(folder, count, seed)
    return folder


def pretrain_and_score(
    folder: pathlib.Path, corpus: pathlib.Path, benchmark: pathlib.Path, steps: int, seed: int
) -> None:
    """`folder`/run, `folder`/huggingface and `folder`/report, by the commands that a user would call."""
    run, model, report = folder / "run", folder / "huggingface", folder / "report"
    flags_of = [f"--config.data.corpus={corpus}", f"--config.seed={seed}"]
    command.call(["launch/main.py", f"--config=configs/demo.py:{steps}", f"--workdir={run}", *flags_of])
    command.call(["launch/convert.py", f"--checkpoint={run}", f"--output={model}", "--verify"])
    command.call(
        ["launch/evaluate.py", f"--model={model}", f"--data={benchmark}", f"--output={report}", f"--run={run}"]
    )


def demo(output: pathlib.Path) -> int:
    """From studies to the scores of a model, on the scans of --input or on synthetic ones."""
    if _INPUT.value:
        studies = pathlib.Path(_INPUT.value).resolve()
        if not studies.is_dir():
            raise UserError(f"--input: no folder {_INPUT.value}; write a folder of NIfTI or DICOM studies")
        folder = output / f"{studies.name}-{hashlib.sha256(str(studies).encode()).hexdigest()[:6]}"
        benchmark = corpus = ingest(studies, folder / "corpus")
    else:
        folder = output / "phantom"
        corpus = ingest(phantom_studies(folder / "studies", DEMO_STUDIES[0], 0), folder / "corpus")
        labelled = phantom_studies(folder / "held_out_studies", DEMO_STUDIES[1], LABELLED_SEED)
        benchmark = ingest(labelled, folder / "held_out_corpus")
    pretrain_and_score(folder, corpus, benchmark, _STEPS.value or 300, 0)
    print(f"\ncheckpoint      {folder / 'run' / 'checkpoints'}\nPyTorch folder  {folder / 'huggingface'}")
    if not (folder / "report" / results.FILE).exists():
        print("no labels, so no scores: give label maps beside the scans to get a report")
        return 0
    print(f"report          {folder / 'report' / results.PAGE}\n")
    print_scores(results.read(folder / "report"))
    return 0


def print_scores(found: results.Results) -> None:
    """The primary metric of every row by every head, and the verdict."""
    from curia2_jax.curiabench import protocol  # its heads need what only an evaluation needs

    scoring = protocol.scoring_behind(found)
    metric = scoring.primary.metric
    print(f"{metric.phrase + ', mean of the tasks':<38}" + "".join(f"{head.short:<24}" for head in scoring.heads))
    for row in protocol.ROWS:
        scores = (found["mean"]["rows"][row.name][head.name][metric.name] for head in scoring.heads)
        cells = "".join(f"{'{:.3f} [{:.3f}, {:.3f}]'.format(*score):<24}" for score in scores)
        print(f"{row.title:<38}{cells}")
    print(f"\n{found['verdict']}")


def evidence(output: pathlib.Path) -> int:
    """Three seeds, each pre-trained on its own studies and scored on the same studies that none of them saw."""
    labelled = phantom_studies(output / "evidence" / "held_out_studies", EVIDENCE_STUDIES[1], LABELLED_SEED)
    benchmark = ingest(labelled, output / "evidence" / "held_out_corpus")
    reports = []
    for seed in range(3):
        folder = output / "evidence" / f"seed_{seed}"
        corpus = ingest(phantom_studies(folder / "studies", EVIDENCE_STUDIES[0], seed), folder / "corpus")
        if not (folder / "report" / results.FILE).exists():
            pretrain_and_score(folder, corpus, benchmark, _STEPS.value or 400, seed)
        reports.append(results.read(folder / "report"))
    print_evidence(reports)
    return 0


def print_evidence(reports: list[results.Results]) -> None:
    """The primary metric of every seed, and how often the trained backbone is above the one with random weights."""
    from curia2_jax.curiabench import protocol  # as above

    scoring = protocol.scoring_behind(reports[0])
    metric, baseline = scoring.primary.metric, protocol.RANDOM
    print(f"\n{metric.phrase}, mean of the tasks; the difference with its 95 % interval over patients")
    names = "".join(f"{row.name:<10}" for row in protocol.ROWS)
    print(f"{'':<14}{'seed':<6}{names}{protocol.TRAINED.name} - {baseline.name}")
    for head in scoring.heads:
        wins = 0
        for seed, report in enumerate(reports):
            mean = report["mean"]
            difference = mean["trained_minus"][baseline.name][head.name][metric.name]
            wins += difference[1] > 0
            scores = (mean["rows"][row.name][head.name][metric.name][0] for row in protocol.ROWS)
            cells = "".join(f"{score:<10.3f}" for score in scores)
            print(f"{head.short:<14}{seed:<6}{cells}{difference[0]:+.3f} [{difference[1]:+.3f}, {difference[2]:+.3f}]")
        print(f"{head.short}: above random weights with the whole interval in {wins} of {len(reports)} seeds\n")


def run(argv: list[str]) -> int:
    """The demo, or the evidence."""
    if argv[1:]:
        raise UserError(f"found {argv[1]!r}; write --input=DIR")
    output = pathlib.Path(_OUTPUT.value)
    output = output if output.is_absolute() else pathlib.Path(os.getcwd()) / output
    return evidence(output) if _EVIDENCE.value else demo(output)


if __name__ == "__main__":
    command.start(run)
