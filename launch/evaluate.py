"""Score an exported model on labelled slices, frozen: nearest neighbors and a linear probe.

    python launch/evaluate.py --model HF_DIR --data DIR --output REPORT [--task NAME...] [--device cuda] [--run RUN]
    python launch/evaluate.py compare REPORT_A REPORT_B
    python launch/evaluate.py tasks SCANS DIR

DIR is a benchmark, as `launch/ingest.py --labels` writes it. REPORT becomes a folder with report.html, a page a task in
pages/, results.json, scores.csv and predictions.parquet. Without --task, every task of DIR is scored. A corpus with
label maps also has the tasks dense-ct, dense-mr, structures-ct and structures-mr, once for every kind of labels
(dense-mr.KIND is one of them alone), and every corpus has height-ct, height-mr, plane-ct and plane-mr; they are made in
REPORT/tasks. Tasks of parquet files or of a folder of `datasets`, as CuriaBench is downloaded, are unpacked there. With
--run, the report also shows the crops that this training run saw, and its curves, and says whether its corpus holds
patients or images of the test; so does --corpus. No code in HF_DIR is run unless --trust-remote-code says so.
`compare` needs the predictions of two reports alone: the difference of every task by every head on the same patients, p
by flips of signs over patients, and Holm's correction over all of them.
`tasks` makes a benchmark of volumes of labelled scans that have labels.csv or values.csv, samples.csv (who is train and
test) and patients.csv, as data/ingest/volume_tasks.py and value_tasks.py say; with pairs.csv (fixed,moving) also tasks
of registration, as pair_tasks.py says.
Exit codes: 0 done, or no labels to score on; 1 a fault; 2 your mistake (one line says which).
"""

import pathlib

from absl import flags

from curia2_jax.curiabench import corpus_tasks, index_tasks, published
from curia2_jax.curiabench.tasks import benchmark_folder, task_names
from curia2_jax.data.corpus.layout import CONTRACT
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
_AGAINST = flags.DEFINE_multi_string(
    "against",
    [],
    "Another model, a row beside yours; may be repeated: a folder of launch/convert.py, DINOv2 or DINOv3; curia:DIR, "
    "curia-2:DIR, rad-dino:DIR, timm:DIR, monai:DIR, random:DIR@SEED, pixels-linear:DIR, or FILE.py:NAME.",
)
_POOLING = flags.DEFINE_string(
    "pooling",
    "curia-2",
    "How tokens become features: curia-2, or curia-v1 with the defects of Curia's public trainer, which "
    "docs/evaluation.md lists; then changes, as in curia-v1,norm=after.",
)
_SETTING = flags.DEFINE_multi_enum(
    "setting",
    [],
    ["few-shot", "cross-modality", "attention"],
    "Also learn from 1, 5, 10, 25 and 50 % of the patients; learn from the CT of a task and ask its MR; or also read "
    "volumes by attention over their slices. May be repeated.",
)
_CACHE = flags.DEFINE_string("cache", None, "Folder where features of --against are kept and found again.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "Where the backbone runs.")
_RUN = flags.DEFINE_string(
    "run", None, "Training run: its pictures are shown, and its corpus is searched for the test."
)
_CORPUS = flags.DEFINE_string("corpus", None, "Corpus of pre-training, where --run does not say it.")
_TRUST = flags.DEFINE_bool(
    "trust-remote-code", False, "Run the image processor in --model where it is not ours, and FILE.py of --against."
)


def run(argv: list[str]) -> int:
    """Checks every flag, then scores and prints the table and the verdict; or compares two reports."""
    if argv[1:2] == ["compare"]:
        return compare(argv[2:])
    if argv[1:2] == ["tasks"]:
        return make_tasks(argv[2:])
    model, data, output = (command.required(flag) for flag in (_MODEL, _DATA, _OUTPUT))
    if argv[1:] and not _TASK.value:
        raise UserError(f"found {argv[1]!r} without a flag; write --task {argv[1]}")
    for flag in (_MODEL, _DATA, _RUN, _RANDOM):
        for value in [flag.value] if isinstance(flag.value, str) else flag.value or []:
            if not pathlib.Path(value).is_dir():
                raise UserError(f"--{flag.name}: found {value}, which is no folder")
    names = [*_TASK.value, *argv[1:]]
    folder, names = unpacked(pathlib.Path(data), names, pathlib.Path(output, "tasks"))
    if folder is None:
        print(f"no labels in {data}: nothing to score. Ingest with --labels to get a benchmark.")
        return 0
    try:
        from curia2_jax.curiabench import leaks, others, report, results
        from curia2_jax.curiabench.evaluate import evaluate  # after the flags: a wrong one needs no PyTorch
    except ModuleNotFoundError as e:
        raise UserError(f"{e.name} is not installed; write: pip install -e '.[eval]'") from None
    names = names or task_names(folder)
    run_pictures = sorted(pathlib.Path(_RUN.value, "images").glob("*.png")) if _RUN.value else []
    trained_on = leaks.whole_corpus(_CORPUS.value) if _CORPUS.value else None
    if _RUN.value and not trained_on:
        try:
            trained_on = leaks.corpus_of_run(_RUN.value)
        except UserError as e:  # its pictures are shown all the same
            print(f"warning: {e}; what training saw of the test is not looked at")
    cache = pathlib.Path(_CACHE.value) if _CACHE.value else None
    beside = others.load_all(_AGAINST.value, _DEVICE.value, _TRUST.value, _POOLING.value, cache)
    scored = evaluate(
        model, folder, names, output, _DEVICE.value, run_pictures, _TRUST.value, _RANDOM.value, trained_on, beside,
        _SETTING.value,
    )  # fmt: skip
    print()
    print(report.table(scored))
    print()
    print(scored["verdict"])
    print(f"report: {pathlib.Path(output) / results.PAGE}")
    return 0


def unpacked(data: pathlib.Path, names: list[str], place: pathlib.Path) -> tuple[pathlib.Path | None, list[str]]:
    """The folder of tasks: --data, or `place` where they are first made of a corpus or of published files; and those of
    them that are asked for."""
    of_index = [name for name in names if name in index_tasks.NAMES]
    of_labels = [name for name in names if name not in of_index]
    if (data / CONTRACT).is_file() and (of_index or any(map(corpus_tasks.parse, of_labels))):
        made = corpus_tasks.write(data, of_labels, place)
        return place, made + index_tasks.write(data, of_index, place)
    there = published.names(data)
    if there and (set(names) & set(there) or not task_names(data)):
        return published.unpack(data, names or there, place), names
    return benchmark_folder(data), names


def compare(reports: list[str]) -> int:
    """Prints the differences of two reports."""
    if len(reports) != 2:
        raise UserError(f"compare: found {len(reports)} reports; write compare REPORT_A REPORT_B")
    try:
        from curia2_jax.curiabench import answers, paired, protocol  # as below
    except ModuleNotFoundError as e:
        raise UserError(f"{e.name} is not installed; write: pip install -e '.[eval]'") from None
    first, second = (answers.read(pathlib.Path(report)) for report in reports)
    print(paired.table(paired.compare(first, second), protocol.scoring_of(first[0].kind)))
    return 0


def make_tasks(folders: list[str]) -> int:
    """Writes the tasks and prints a line each."""
    if len(folders) != 2 or not pathlib.Path(folders[0]).is_dir():
        raise UserError(
            f"tasks: found {' '.join(folders) or 'nothing'}; write tasks SCANS DIR, where SCANS is a folder with "
            "labels.csv or values.csv"
        )
    from curia2_jax.data.ingest import benchmark_schema, pair_tasks, value_tasks, volume_tasks

    scans, output = map(pathlib.Path, folders)
    has_values, paired = ((scans / table).is_file() for table in (value_tasks.TABLE, benchmark_schema.PAIRS))
    split = not paired or (scans / "samples.csv").is_file()  # pairs alone need none
    if split and ((scans / volume_tasks.TABLE).is_file() or not has_values):
        volume_tasks.write(scans, output, print)
    if has_values:
        value_tasks.write(scans, output, print)
    if paired:
        pair_tasks.write(scans, output, print)
    return 0


if __name__ == "__main__":
    command.start(run, takes_words=True)
