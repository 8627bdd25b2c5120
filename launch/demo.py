"""The whole program on this machine: studies -> corpus -> pre-training -> PyTorch folder -> report.

    make demo                     synthetic studies; minutes on two cores
    make demo INPUT=DIR           a folder of real scans; label maps in it are used if there are any
    make evidence                 three seeds, each on studies of its own
    make evidence INPUT=DIR       real scans with tables that say whom to train, learn from and test

It runs the commands that you would run, and prints them. Called again, it goes on where it was.
"""

import hashlib
import pathlib

from absl import flags

from curia2_jax.curiabench import results
from curia2_jax.errors import UserError
from launch import command, evidence, pipeline

_INPUT = flags.DEFINE_string("input", None, "Folder of studies; default: synthetic ones.")
_PATIENTS = flags.DEFINE_string("patient-regex", None, "Passed on to launch/ingest.py.")
_EVIDENCE = flags.DEFINE_bool("evidence", False, "Ask what launch/evidence.py has written down.")
_OUTPUT = flags.DEFINE_string("output", "demo", "Folder for everything that is made.")
_STEPS = flags.DEFINE_integer("steps", None, "Training steps; default: those of the recipe.", lower_bound=1)
STUDIES, LABELLED = 32, 66  # to pre-train on, and labelled ones to score on
LABELLED_SEED = 10_000  # no study of it is pre-trained on


def folder_of(output: pathlib.Path, studies: pathlib.Path) -> pathlib.Path:
    """Where what is made of a folder of scans goes."""
    return output / f"{studies.name}-{hashlib.sha256(str(studies).encode()).hexdigest()[:6]}"


def scans() -> pathlib.Path | None:
    """The folder of --input, if it was given.

    Raises:
      UserError: it is no folder.
    """
    if not _INPUT.value:
        return None
    studies = pathlib.Path(_INPUT.value).resolve()
    if not studies.is_dir():
        raise UserError(f"--input: no folder {_INPUT.value}; write a folder of NIfTI or DICOM studies")
    return studies


def demo(output: pathlib.Path, studies: pathlib.Path | None) -> None:
    """From studies to the scores of a model, on the scans of --input or on synthetic ones."""
    if studies:
        folder = folder_of(output, studies)
        regex = [f"--patient-regex={_PATIENTS.value}"] if _PATIENTS.value else []
        benchmark = corpus = pipeline.ingest(studies, folder / "corpus", *regex)
    else:
        folder = output / "phantom"
        corpus = pipeline.ingest(pipeline.phantom_studies(folder / "studies", STUDIES, 0), folder / "corpus")
        labelled = pipeline.phantom_studies(folder / "held_out_studies", LABELLED, LABELLED_SEED)
        benchmark = pipeline.ingest(labelled, folder / "held_out_corpus")
    run, model, report = folder / "run", folder / "huggingface", folder / "report"
    pipeline.pretrain(run, corpus, _STEPS.value, 0)
    command.call(["launch/convert.py", f"--checkpoint={run}", f"--output={model}", "--verify"])
    line = ["launch/evaluate.py", f"--model={model}", f"--data={benchmark}", f"--output={report}", f"--run={run}"]
    command.call(line)
    print(f"\ncheckpoint      {run / 'checkpoints'}\nPyTorch folder  {model}")
    if not (report / results.FILE).exists():
        print("no labels, so no scores: give label maps beside the scans to get a report")
        return
    print(f"report          {report / results.PAGE}")
    pipeline.learned(run, benchmark, folder / "learned")


def run(_: list[str]) -> int:
    """The demo, or the evidence."""
    output, studies = pathlib.Path(_OUTPUT.value), scans()
    if not _EVIDENCE.value:
        demo(output, studies)
    elif studies:
        evidence.real(studies, folder_of(output / "evidence", studies), _STEPS.value)
    else:
        evidence.phantoms(output / "evidence", _STEPS.value)
    return 0


if __name__ == "__main__":
    command.start(run)
