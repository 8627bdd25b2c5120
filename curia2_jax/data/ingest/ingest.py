"""Folders of studies -> a corpus, in parallel and resumable: every file is stored, is a label, or is listed with why
not.

1. `plan`: every file is looked at once, series are sorted by name and dealt to shards; the plan goes to `CORPUS/work/`.
2. `make_shard` turns one entry of the plan into one finished part. It can be killed and called again, on any machine
   that sees the files, in any order; a finished part is never made again.
3. `publish`: equal series are dropped, benchmarks written, parts become the corpus; the contract comes last.

Memory: a worker holds one volume, at most 512 MiB of it in memory (a larger one is unpacked to a temporary file and
mapped), blocks of slices of 32 MiB, and the index rows of one shard.
"""

import collections
import collections.abc
import dataclasses
import importlib.metadata
import json
import pathlib
import secrets
import shutil
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from curia2_jax import files
from curia2_jax.data.corpus import index, layout, records
from curia2_jax.data.ingest import (
    append,
    benchmark,
    foreground,
    identity,
    intensity,
    journal,
    local,
    parts,
    plan,
    publish,
    slicing,
)
from curia2_jax.data.ingest.plan import Options, Progress
from curia2_jax.data.ingest.runners import Pool, Runner
from curia2_jax.data.ingest.shard_maker import SLOWEST, make_shard
from curia2_jax.data.readers.faults import MachineFault
from curia2_jax.errors import UserError


@dataclasses.dataclass
class Summary:
    """What an ingest did, for the closing table. `made` are the slices that this call made, the others were there
    before; `refused` are lines of the quarantine a reason and `lost` the files and bytes behind them, of `files` and
    `bytes` in all; `stages` are seconds of one core, `slowest` the seconds of the slowest scans."""

    contract: index.Contract
    refused: dict[str, int]
    lost: dict[str, dict[str, int]]
    files: int
    bytes: int
    slowest: list[tuple[float, str]]
    label_maps: int
    tasks: list[dict]
    stages: dict[str, float]
    warnings: list[str]
    made: int = 0
    seconds: float = 0.0


def ingest(
    output: pathlib.Path,
    options: Options,
    workers: int,
    progress: Progress,
    runner: Runner | None = None,
    more: bool = False,
) -> Summary:
    """Make the corpus, or carry on with one that was begun with the same options; a finished one is left as it is, or
    with `more` gets what is new in the archive.

    `progress(stage, done, total, slices)` is called as work gets done. `runner` runs the shards, when it is None a pool
    of `workers` processes, whose end a broken file may be; with none, this process, which then ends as well.

    Raises:
      UserError: an option that makes no sense, other options than the corpus was begun with, no slice that was
        accepted, or a machine that cannot go on reading, as when TMPDIR is full.
      OSError: `output` cannot be written or is full.
    """
    started = time.perf_counter()
    options.check()
    work = output / layout.WORK
    journal.resume(output)
    _refuse_other_options(output, options)
    is_append = more and (output / layout.CONTRACT).exists()
    if is_append:
        append.check(output)
    elif (output / layout.CONTRACT).exists():
        shutil.rmtree(work, ignore_errors=True)
        contract = json.loads((output / layout.CONTRACT).read_text())
        before = {"lost": {}, "files": 0, "bytes": 0, "slowest": []}  # younger than some corpora
        return Summary(contract, **before | json.loads((output / layout.LOCAL / layout.SUMMARY).read_text()))
    _begin(output, options)
    try:
        if not (work / layout.PLAN).exists():
            plan.make(work, options, workers, progress, output / layout.LOCAL / layout.SEEN if is_append else None)
        made = _make_shards(output, workers, progress, runner)
    except MachineFault as fault:
        raise UserError(f"{fault.line}, then call again: it carries on") from fault
    summary = _finish(output, options, is_append)
    return dataclasses.replace(summary, made=made, seconds=time.perf_counter() - started)


def _refuse_other_options(output: pathlib.Path, options: Options) -> None:
    for path in map(pathlib.Path, options.input):
        if path.resolve() in (output.resolve(), *output.resolve().parents):
            raise UserError(f"--output {output}: lies inside of --input {path}; write a folder elsewhere")
    begun = (output / layout.CONTRACT).exists() or (output / layout.WORK / layout.PLAN).exists()
    if not begun:
        ours = (layout.LOCAL, layout.WORK)
        if output.exists() and (not output.is_dir() or any(path.name not in ours for path in output.iterdir())):
            raise UserError(f"--output {output}: is not empty and not a corpus; write a new folder")
        return
    # Options that are younger than the corpus had their default.
    before = Options.from_json(json.loads((output / layout.LOCAL / layout.OPTIONS).read_text())).to_json()
    asked = options.to_json()
    for name, value in asked.items():
        if before[name] != value:
            raise UserError(
                f"--output {output}: made with {name}={before[name]!r}, now {value!r}; "
                "write the same options to carry on, or another folder"
            )


def _begin(output: pathlib.Path, options: Options) -> None:
    work, local = output / layout.WORK, output / layout.LOCAL
    if options.salt and not pathlib.Path(options.salt).is_file():
        raise UserError(f"--salt {options.salt}: no such file; write a file with a secret in it")
    try:
        work.mkdir(parents=True, exist_ok=True)
        local.mkdir(exist_ok=True)
        local.chmod(0o700)  # who is in the corpus is for its owner alone
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; write a folder that can be made") from None
    for temporary in work.glob(f"*{files.SUFFIX}"):
        temporary.unlink(missing_ok=True)
    if not options.salt and not (local / layout.SALT).exists():
        files.write_text(local / layout.SALT, secrets.token_hex(32))
    if (local / layout.SALT).exists():
        (local / layout.SALT).chmod(0o600)
    # Workers elsewhere find the files of the user by absolute paths.
    absolute: dict[str, Any] = {
        name: value and str(pathlib.Path(value).absolute())
        for name, value in (("salt", options.salt), ("patients", options.patients))
    }
    for folder, some in ((local, options), (work, dataclasses.replace(options, **absolute))):
        files.write_text(folder / layout.OPTIONS, json.dumps(some.to_json(), indent=2))


def _make_shards(output: pathlib.Path, workers: int, progress: Progress, runner: Runner | None) -> int:
    """Make the parts that are missing; returns the slices in them."""
    work = output / layout.WORK
    count = json.loads((work / layout.PLAN).read_text())["shards"]
    todo = [n for n in range(count) if not parts.is_finished(work, n)]
    tasks = [(str(output.absolute()), n) for n in todo]  # elsewhere the current folder may be another
    if runner is not None:
        runner(make_shard, tasks)
        lost = [n for n in todo if not parts.is_finished(work, n)]
        if lost:
            raise UserError(
                f"--runner: the job is done, but {len(lost)} of {len(todo)} shards are not in {work}; "
                "mount --output in the same place for all workers and call again: it carries on"
            )
        return sum(series["records"] for n in todo for series in parts.report(work, n)["series"])
    slices = 0
    try:
        with Pool(workers) as pool:
            for done, (_, made) in enumerate(pool.each(make_shard, tasks), count - len(todo) + 1):
                slices += made
                progress("making shards", done, count, slices)
    except BrokenProcessPool:
        # A decoder took its process down. Whose fault it was shows when the unfinished shards run one by one.
        for task in tasks:
            slices += _make_alone(work, task)
            progress("making shards", sum(parts.is_finished(work, n) for n in range(count)), count, slices)
    return slices


def _make_alone(work: pathlib.Path, task: tuple[str, int]) -> int:
    """Make one shard in a process of its own, leaving out each scan that ends the process."""
    while True:
        try:
            with Pool(1) as pool:
                return next(made for _, made in pool.each(make_shard, [task]))
        except BrokenProcessPool:
            at, fatal = work / layout.part_now(task[1]), work / layout.FATAL
            known = json.loads(fatal.read_text()) if fatal.exists() else []
            series = at.read_text(encoding="utf-8", errors="surrogateescape") if at.exists() else None
            if series is None or series in known:
                raise
            files.write_text(fatal, json.dumps([*known, series]))


def _finish(output: pathlib.Path, options: Options, is_append: bool) -> Summary:
    work, local_folder = output / layout.WORK, output / layout.LOCAL
    made = json.loads((work / layout.PLAN).read_text())

    def reports() -> collections.abc.Iterator[dict]:
        """One at a time: together they say something of every series, of which there are millions."""
        return (parts.report(work, number) for number in range(made["shards"]))

    drop = _duplicates(reports)
    target = local_folder
    if is_append:
        drop, target = append.dropped(output, reports, drop), work / layout.LOCAL
        target.mkdir(exist_ok=True)
    lost, corrected = local.write(target, work, reports, drop, local_folder if is_append else None)
    if not is_append and not any(True for report in reports() for _ in local.whole(report)):
        shutil.rmtree(work)  # so that the folder can be used again
        most = sorted(lost.items(), key=lambda item: -item[1]["listed"])[:5]
        listed = ", ".join(f"{reason} {count['listed']}" for reason, count in most)
        table = local_folder / layout.QUARANTINE
        raise UserError(f"--input {', '.join(options.input)}: no slice was accepted ({listed}); see {table}")
    sampled = [benchmark.Sampled(**s) for report in reports() for s in report["samples"] if s["series"] not in drop]
    tasks = []
    if not is_append:
        benchmark.keep(output, work, sampled)
        names = benchmark.read_names(options.label_names) if options.label_names else {}
        tasks = benchmark.write(output / layout.BENCHMARK, work, sampled, names)
    assumed = corrected[identity.ASSUMED_PATIENT]
    poor = [task["name"] for task in tasks if len(task["classes"]) < 2]
    warnings = [f"{assumed} series name no patient, who was assumed; see --patient-regex"] if assumed else []
    if strangers := made.get("strangers"):
        warnings.append(f"--patients names {len(strangers)} files that are not there, such as {strangers[0]}")
    nobody = corrected[identity.NOBODY]
    warnings += (
        [f"{nobody} series name a patient such as ANONYMOUS, who is one patient; see --patient-regex"] if nobody else []
    )
    warnings += [f"no benchmark {name}: it has fewer than two labels in both train and test" for name in poor]
    stages: collections.Counter[str] = collections.Counter()
    for report in reports():
        stages.update(report["seconds"])
    summary = {
        "refused": {reason: count["listed"] for reason, count in lost.items()},
        "lost": {reason: {name: count[name] for name in ("files", "bytes")} for reason, count in lost.items()},
        "files": made["files"],
        "bytes": made["bytes"],
        "slowest": sorted((tuple(one) for report in reports() for one in report["slowest"]), reverse=True)[:SLOWEST],
        "label_maps": made["label_maps"],
        "tasks": [task for task in tasks if task["name"] not in poor],
        "stages": dict(stages),
        "warnings": warnings,
    }
    if is_append:
        before = json.loads((local_folder / layout.SUMMARY).read_text())
        summary |= {name: made[name] + before.get(name, 0) for name in ("files", "bytes", "label_maps")}
        summary |= {"tasks": before["tasks"]}
    files.write_text(target / layout.SUMMARY, json.dumps(summary, indent=2))
    if is_append:
        labelled = sorted({one.series for one in sampled})
        return Summary(append.publish_more(output, reports, drop, labelled), **summary)
    return Summary(publish.publish(output, made["shards"], set(drop), _contract(options)), **summary)


def _duplicates(reports: local.Reports) -> dict[str, tuple[str, str]]:
    """Key of each series that occurs twice -> why it is not kept."""
    drop = publish.duplicates(series for report in reports() for series in local.whole(report))
    stays = set(drop.values())
    source = {one.key: one.source for report in reports() for one in local.whole(report) if one.key in stays}
    return {key: ("duplicate", f"the same voxels as {source[stay]}") for key, stay in drop.items()}


def _contract(options: Options) -> dict:
    """What was done to every slice. Nothing in it names a place or a person."""
    codec = records.CODECS[options.codec]
    return {
        "code_version": importlib.metadata.version("curia2-jax"),
        "record": {"version": codec.version, "codec": codec.name, "pixels": "int16"},
        "orientation": {"axial": "PL", "coronal": "IL", "sagittal": "IP"},
        "options": {
            "planes": list(options.planes),
            "modality": options.modality,
            "orientation": options.orientation,
            "every_frame": options.every_frame,
            "max_side": slicing.MAX_SIDE,
            "min_side": slicing.MIN_SIDE,
            "near_isotropic": slicing.NEAR_ISOTROPIC,
            "min_foreground": foreground.MIN_FOREGROUND,
            "ct_threshold": foreground.CT_THRESHOLD,
            "air": intensity.AIR,
            "padding_below": intensity.PADDING_BELOW,
        },
    }
