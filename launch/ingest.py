"""Studies -> corpus.

python launch/ingest.py --input DIR --output CORPUS [--labels GLOB|CSV] [--planes axial,coronal] [--workers N]
python launch/ingest.py --input DIR --output CORPUS --runner beam [--beam-options=--runner=FlinkRunner,...]
python launch/ingest.py --output CORPUS --preview 4 [--config=configs/vitg.py]
python launch/ingest.py --input DIR --output CORPUS --append
python launch/ingest.py --output CORPUS --forget KEY
python launch/ingest.py --verify CORPUS
python launch/ingest.py --statistics CORPUS
"""

import collections.abc
import contextlib
import math
import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from curia2_jax.errors import UserError
from launch import command

# What a command needs is imported when the flags have been read: --help and a wrong flag are answered at once.
_INPUT = flags.DEFINE_multi_string("input", [], "Folder or file of studies; may be given several times.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the corpus to make, or to carry on with.")
_LABELS = flags.DEFINE_string(
    "labels", "*_seg.nii.gz,labels/*", "Which files are label maps: globs, or a CSV image,label[,kind]."
)
_NAMES = flags.DEFINE_string("label-names", None, "JSON with the names of the labels.")
_PLANES = flags.DEFINE_list("planes", ["axial"], "Planes to cut near-isotropic volumes in: axial,coronal,sagittal.")
_MODALITY = flags.DEFINE_string("modality", None, "CT or MR, instead of what the files say or seem to be.")
_ORIENTATION = flags.DEFINE_string("orientation", None, "Axes of NIfTI files without an affine, such as RAS.")
_REGEX = flags.DEFINE_string("patient-regex", None, "Finds the patient in a path; its first group, if it has one.")
_PATIENTS = flags.DEFINE_string("patients", None, "CSV with the columns file,patient; paths relative to it.")
_SALT = flags.DEFINE_string("salt", None, "File with the secret behind the keys: one for corpora that share patients.")
_CODEC = flags.DEFINE_enum(
    "codec",
    "htj2k",
    ["htj2k", "zstd"],
    "Of the slices, without loss: zstd is read three times as fast, a sixth larger.",
)
_FRAMES = flags.DEFINE_enum("frames", "first", ["first", "all"], "Which volumes of a 4-D series to take.")
_WORKERS = flags.DEFINE_integer("workers", len(os.sched_getaffinity(0)), "Processes.", lower_bound=1)
_RUNNER = flags.DEFINE_enum("runner", "local", ["local", "beam"], "What runs the shards.")
_BEAM = flags.DEFINE_list("beam-options", [], "Options of the Beam pipeline, such as --runner=FlinkRunner.")
_PREVIEW = flags.DEFINE_integer(
    "preview",
    0,
    "Pages of pictures to draw into CORPUS/preview, and how much of the crops and masks of --config is on the body.",
    lower_bound=0,
)
# Without a default, which would be read at every start.
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Whose crops and masks --preview draws; configs/vitb.py if not given.", lock_config=True
)
_APPEND = flags.DEFINE_bool(
    "append", False, "Add what is new in the archive to a finished corpus; files seen before are not looked at again."
)
_FORGET = flags.DEFINE_multi_string(
    "forget", [], "Patient who withdraws: key of the index column patient, or the archive's identifier; all slices go."
)
_VERIFY = flags.DEFINE_string("verify", None, "Read and check every record of a corpus.")
_STATISTICS = flags.DEFINE_string("statistics", None, "Tell what is in a corpus.")


def run(_: list[str]) -> int:
    if _VERIFY.value:
        return _verify(pathlib.Path(_VERIFY.value))
    if _STATISTICS.value:
        from curia2_jax.data.ingest import audit

        _table(pathlib.Path(_STATISTICS.value), audit.statistics(pathlib.Path(_STATISTICS.value)))
        return 0
    if _FORGET.value:
        _forget()
        return 0
    if not _OUTPUT.value or not (_INPUT.value or _PREVIEW.value):
        raise UserError("nothing to do; write --input DIR --output CORPUS, --verify CORPUS or --statistics CORPUS")
    if _INPUT.value:
        _ingest(pathlib.Path(_OUTPUT.value))
    if _PREVIEW.value:
        _preview(pathlib.Path(_OUTPUT.value), _PREVIEW.value)
    return 0


def _forget() -> None:
    from curia2_jax.data.corpus import layout
    from curia2_jax.data.ingest import forget

    if not _OUTPUT.value or _INPUT.value:
        raise UserError("--forget: goes with --output CORPUS and no --input; ingest and forget one after the other")
    folder = pathlib.Path(_OUTPUT.value)
    copies = forget.copies(folder, _FORGET.value)
    contract = forget.forget(folder, _FORGET.value)
    print(
        f"{folder}: {contract['slices']} slices of {contract['patients']} patients are left, all others are as before"
    )
    print(f"runs on the corpus as it was do not go on; its contract is revision {contract.get('revision', 1)}")
    table = folder / layout.LOCAL / layout.QUARANTINE
    if copies:
        print(f"left out before, with the same voxels, perhaps of the patient under another name: {', '.join(copies)}")
    print(f"not searched: copies and checkpoints elsewhere; {table} may name refused files of the patient")


def _ingest(output: pathlib.Path) -> None:
    from curia2_jax.data.corpus import layout
    from curia2_jax.data.ingest import ingest, runners, shard_maker, tables

    options = ingest.Options(
        input=tuple(_INPUT.value),
        planes=tuple(_PLANES.value),
        modality=_MODALITY.value,
        orientation=_ORIENTATION.value,
        every_frame=_FRAMES.value == "all",
        labels=_LABELS.value,
        label_names=_NAMES.value,
        patient_regex=_REGEX.value,
        patients=_PATIENTS.value,
        salt=_SALT.value,
        codec=_CODEC.value,
    )
    if _BEAM.value and _RUNNER.value != "beam":
        raise UserError(f"--beam-options {','.join(_BEAM.value)}: only with --runner beam; write it too")
    runner = runners.beam(_BEAM.value) if _RUNNER.value == "beam" else None
    with _bars(lambda: shard_maker.longest(output)) as progress:
        summary = ingest.ingest(output, options, _WORKERS.value, progress, runner, _APPEND.value)
    contract = summary.contract
    refused = {reason: n for reason, n in sorted(summary.refused.items()) if reason != "other_file"}
    lost = {
        reason: f"{refused[reason]}: {of['files']:,} files, {of['bytes']:,} bytes, "
        f"{of['bytes'] / max(summary.bytes, 1):.1%} of all"
        for reason, of in summary.lost.items()
        if reason in refused
    }
    rows = {
        "studies": contract["studies"],
        "series": contract["series"],
        "patients": contract["patients"],
        "slices accepted": contract["slices"],
        **{
            f"  {name}": n for name, n in sorted((contract["slices_by_modality"] | contract["slices_by_plane"]).items())
        },
        "labels": summary.label_maps,
        "benchmark tasks": len(summary.tasks),
        "refused": sum(refused.values()),
        **{f"  {reason}": lost.get(reason, n) for reason, n in refused.items()},
        "other files": summary.refused.get("other_file", 0),
        "bytes": f"{contract['bytes']:,}",
        "seconds": f"{summary.seconds:.1f}",
        "slices/s": f"{summary.made / summary.seconds:.0f}" if summary.made else "all were there before",
    }
    _table(output, rows)
    stages = ", ".join(f"{stage} {1000 * s / contract['slices']:.2f}" for stage, s in summary.stages.items())
    print(f"milliseconds of a core for a slice: {stages}")
    if summary.slowest:
        slowest = ", ".join(f"{tables.shown(name)} {seconds:.1f} s" for seconds, name in summary.slowest)
        print(f"slowest: {slowest}")
    for warning in summary.warnings:
        print(f"warning: {warning}")
    print(
        f"why each file was refused: {output / layout.LOCAL / layout.QUARANTINE}, pictures in {layout.QUARANTINE_PAGE}"
    )


def _verify(folder: pathlib.Path) -> int:
    from curia2_jax.data.ingest import audit

    with _bars() as progress:
        problems = audit.verify(folder, _WORKERS.value, progress)
    for problem in problems:
        print(f"error: {folder}: {problem}", file=sys.stderr)
    if not problems:
        print(f"{folder}: every record is as it was written")
    return 1 if problems else 0


def _preview(folder: pathlib.Path, pages: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from configs import vitb
    from curia2_jax.data.corpus import layout
    from curia2_jax.data.corpus.corpus import Corpus
    from curia2_jax.data.crops import placement, preview
    from curia2_jax.data.ingest import bodies
    from curia2_jax.training.recipe import recipe_from

    config = vitb.get_config().to_dict() if _CONFIG.value is None else command.config_of(_CONFIG)
    recipe, corpus = recipe_from(config), Corpus(folder)
    body, grid = bodies.finder(corpus), recipe.crops.global_size // recipe.model.patch_size
    pictures = folder / layout.PREVIEW
    pictures.mkdir(exist_ok=True)
    for page in preview.draw_pages(corpus, pictures, pages, body, recipe.crops, recipe.masks, grid):
        print(page)
    rows = placement.statistics(corpus, body, recipe.crops, recipe.masks, grid)
    table = Table("", "placement", "area on the body", "at a border", "nearly empty", title=f"placement in {folder}")
    for row in sorted(rows, key=lambda row: row.what):
        shares = (row.on_foreground, row.at_border, row.nearly_empty)
        table.add_row(row.what, row.placement, *("" if math.isnan(share) else f"{share:.1%}" for share in shares))
    Console(width=100).print(table)
    placement.draw_histograms(rows, pictures / "placement.png")
    print(pictures / "placement.png")


def _table(folder: pathlib.Path, rows: collections.abc.Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"corpus {folder}", show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(width=100).print(table)


@contextlib.contextmanager
def _bars(
    longest: collections.abc.Callable[[], tuple[str, float]] = lambda: ("", 0.0),
) -> collections.abc.Iterator[collections.abc.Callable[[str, int, int, int], None]]:
    """Progress bars on stderr with rate and time left; the stages appear as they begin. Yields a plan.Progress.

    `longest` says what has taken the longest just now, and the seconds: it is named when it takes ten.
    """
    from rich import progress as rich
    from rich.console import Console

    columns = [
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
    ]

    class Longest(rich.ProgressColumn):
        max_refresh = 1.0

        def render(self, task: rich.Task) -> str:
            name, seconds = longest()
            return f"{ascii(name)[1:-1][-60:]} {seconds:.0f} s" if seconds > 10 and not task.finished else ""

    columns.append(Longest())
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, rich.TaskID] = {}

        def progress(stage: str, done: int, total: int, slices: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, rate="")
            elapsed = bars.tasks[tasks[stage]].elapsed
            rate = f"{slices / elapsed:.0f} slices/s" if slices and elapsed else ""
            bars.update(tasks[stage], completed=done, rate=rate)

        yield progress


if __name__ == "__main__":
    command.start(run)
