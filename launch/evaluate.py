"""Score an exported model on labelled slices, frozen: nearest neighbors and a linear probe.

    python launch/evaluate.py --model HF_DIR --data DIR --output REPORT [--task NAME...] [--device cuda] [--run RUN]

DIR is a benchmark, as `launch/ingest.py --labels` writes it. REPORT becomes a folder with report.html and results.json.
Without --task, every task of DIR is scored. With --run, the report also shows the crops that this training run saw, and
its curves. No code in HF_DIR is run unless --trust-remote-code says so.
Exit codes: 0 done, or no labels to score on; 1 a fault; 2 your mistake (one line says which).
"""

import pathlib

from absl import flags

from curia2_jax.curiabench.tasks import benchmark_folder, task_names
from curia2_jax.errors import UserError
from launch import command

_MODEL = flags.DEFINE_string("model", None, "Folder that launch/convert.py wrote.")
_DATA = flags.DEFINE_string("data", None, "Folder of a benchmark, or a corpus that holds one.")
_TASK = flags.DEFINE_multi_string("task", [], "Tasks to score; more names may follow. Default: all of --data.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for report.html and results.json.")
_RANDOM = flags.DEFINE_multi_string(
    "random",
    [],
    "Folder of weights that a run began with (launch/convert.py --checkpoint RUN@0); may be repeated. "
    "Default: three draws of transformers.",
)
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "Where the backbone runs.")
_RUN = flags.DEFINE_string("run", None, "Training run whose pictures go into the report.")
_TRUST = flags.DEFINE_bool(
    "trust-remote-code", False, "Run the image processor in --model where it is not that of this version."
)


def run(argv: list[str]) -> int:
    """Checks every flag, then scores and prints the table and the verdict."""
    model, data, output = (command.required(flag) for flag in (_MODEL, _DATA, _OUTPUT))
    if argv[1:] and not _TASK.value:
        raise UserError(f"found {argv[1]!r} without a flag; write --task {argv[1]}")
    for flag in (_MODEL, _DATA, _RUN, _RANDOM):
        for value in [flag.value] if isinstance(flag.value, str) else flag.value or []:
            if not pathlib.Path(value).is_dir():
                raise UserError(f"--{flag.name}: found {value}, which is no folder")
    folder = benchmark_folder(data)
    if folder is None:
        print(f"no labels in {data}: nothing to score. Ingest with --labels to get a benchmark.")
        return 0
    try:
        from curia2_jax.curiabench import report, results
        from curia2_jax.curiabench.evaluate import evaluate  # after the flags: a wrong one needs no PyTorch
    except ModuleNotFoundError as e:
        raise UserError(f"{e.name} is not installed; write: pip install -e '.[eval]'") from None
    names = [*_TASK.value, *argv[1:]] or task_names(folder)
    run_pictures = sorted(pathlib.Path(_RUN.value, "images").glob("*.png")) if _RUN.value else []
    scored = evaluate(model, folder, names, output, _DEVICE.value, run_pictures, _TRUST.value, _RANDOM.value)
    print()
    print(report.table(scored))
    print()
    print(scored["verdict"])
    print(f"report: {pathlib.Path(output) / results.PAGE}")
    return 0


if __name__ == "__main__":
    command.start(run, takes_words=True)
