"""The commands from studies to answers as functions, for the demo and the evidence. They print what they run."""

import pathlib

from launch import command


def phantom_studies(folder: pathlib.Path, count: int, seed: int) -> pathlib.Path:
    """Synthetic studies in `folder`, made once."""
    if not (folder / "label_names.json").exists():
        from curia2_jax.data.readers import phantom  # only now: it needs SciPy and readers of every format

        print(f"making {count} synthetic studies in {folder}", flush=True)
        phantom.write_studies(folder, count, seed)
    return folder


def ingest(studies: pathlib.Path, corpus: pathlib.Path, *flags: str) -> pathlib.Path:
    """A corpus of a folder, with the labels and names that lie in it."""
    line = ["launch/ingest.py", f"--input={studies}", f"--output={corpus}"]
    for flag, name in (("labels", "labels.csv"), ("label-names", "label_names.json")):
        if (studies / name).is_file():
            line.append(f"--{flag}={studies / name}")
    command.call([*line, *flags])
    return corpus


def pretrain(run: pathlib.Path, corpus: pathlib.Path, steps: int | None, seed: int) -> pathlib.Path:
    """A run of configs/demo_lejepa.py, with its own number of steps unless another is given."""
    config = command.at_home("configs/demo_lejepa.py") + (f":{steps}" if steps else "")
    words = [f"--config.data.corpus={corpus}", f"--config.seed={seed}"]
    command.call(["launch/main.py", f"--config={config}", f"--workdir={run}", *words])
    return run


def learned(run: pathlib.Path, labelled: pathlib.Path, output: pathlib.Path, *flags: str) -> None:
    """The trained weights beside those that the run began with, without masks: under a mask, place is the answer."""
    command.call(["launch/learned.py", f"--run={run}", f"--data={labelled}", f"--output={output}", *flags])
