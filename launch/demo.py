"""The whole program on this machine: studies -> corpus -> pre-training -> PyTorch folder -> report.

    make demo                 synthetic studies; minutes on two cores
    make demo INPUT=DIR       a folder of real scans; label maps in it are used if there are any
    make evidence             three seeds, longer, on 120 studies that they never saw

It runs the commands that you would run, and prints them. Called again, it goes on where it was.
"""

import hashlib
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
DEMO_STUDIES, EVIDENCE_STUDIES = (32, 66), (64, 120)
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
    config = f"{command.at_home('configs/demo.py')}:{steps}"
    command.call(["launch/main.py", f"--config={config}", f"--workdir={run}", *flags_of])
    command.call(["launch/convert.py", f"--checkpoint={run}", f"--output={model}", "--verify"])
    command.call(
        ["launch/evaluate.py", f"--model={model}", f"--data={benchmark}", f"--output={report}", f"--run={run}"]
    )


def what_was_learned(run: pathlib.Path, labelled: pathlib.Path) -> None:
    """The trained weights beside those that the run began with, without masks: under a mask, place is the answer."""
    command.call(["launch/learned.py", f"--run={run}", f"--data={labelled}"])


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
    print(f"report          {folder / 'report' / results.PAGE}")
    what_was_learned(folder / "run", benchmark)
    return 0


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
    from curia2_jax.curiabench import tables  # as above

    tables.print_evidence(reports)
    for seed in range(3):
        what_was_learned(output / "evidence" / f"seed_{seed}" / "run", benchmark)
    return 0


def run(_: list[str]) -> int:
    """The demo, or the evidence."""
    output = pathlib.Path(_OUTPUT.value)
    return evidence(output) if _EVIDENCE.value else demo(output)


if __name__ == "__main__":
    command.start(run)
