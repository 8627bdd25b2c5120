"""What came of a sweep: DIR/table.md, DIR/table.csv and DIR/picture.png."""

import csv
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from curia2_jax import files
from curia2_jax.telemetry import goodput, metrics


class Cost(NamedTuple):
    """What the stages of a run took, and what its student knew at the end of the other view (nan without DINO)."""

    images: float
    device_hours: float
    nats: float


def cost_of(run: pathlib.Path) -> Cost:
    """From the metrics and the ledger of every stage. `nats` is the mean of the last tenth of the rows."""
    images = seconds = 0.0
    nats: list[float] = []
    for stage in sorted(run.glob("stage_*")):
        rows, config = metrics.read(stage / "metrics.jsonl")[0], json.loads((stage / "config.json").read_text())
        devices = json.loads((stage / "environment.json").read_text())["devices"]
        images += rows[-1]["step"] * config["data"]["global_batch"]
        spent = goodput.totals(goodput.read(stage / goodput.NAME))
        seconds += devices * (sum(spent.values()) - spent["apart"])
        nats = [row["nats/dino"] for row in rows[-max(len(rows) // 10, 1) :] if "nats/dino" in row]
    return Cost(images, seconds / 3600, statistics.fmean(nats) if nats else math.nan)


def write(
    workdir: pathlib.Path, done: Mapping[str, Sequence[pathlib.Path]], failed: Mapping[pathlib.Path, str]
) -> None:
    """Of the folders of every run, one a seed, and of those that failed and why. Nothing if none is done."""
    if not done:
        return
    from curia2_jax.curiabench import ladder  # its heads need scikit-learn, a dry run does not

    rungs, scoring = ladder.climb({name: [folder / "report" for folder in seeds] for name, seeds in done.items()})
    costs = {name: [cost_of(folder) for folder in seeds] for name, seeds in done.items()}
    means = {name: Cost(*map(statistics.fmean, zip(*found, strict=True))) for name, found in costs.items()}
    metric, heads = scoring.primary.metric, [head.short for head in scoring.heads]
    with files.whole_file(workdir / "table.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(numbers(rungs, means, done, heads))
    text = (
        f"{metric.title}, mean of the tasks and seeds; 95 % intervals, paired by patient.\n"
        "Where an interval of a difference holds zero, this size cannot tell the two apart.\n\n"
        + "\n".join(table(rungs, means, done, heads))
        + "".join(f"\n\nFailed: `{folder.name}`: {trouble}." for folder, trouble in failed.items())
    )
    files.write_text(workdir / "table.md", text + "\n")
    ladder.draw(workdir / "picture.png", rungs, heads, metric)
    print(f"\n{text}\n\n{workdir / 'table.md'}, table.csv, picture.png")


def numbers(
    rungs: Mapping, means: Mapping[str, Cost], done: Mapping[str, Sequence], heads: Sequence[str]
) -> list[list]:
    """The rows of table.csv, its header first."""
    triples = [f"{head}{kind}{end}" for kind in ("", " gain") for head in heads for end in ("", " low", " high")]
    rows: list[list] = [["run", "seeds", *triples, "nats", "images", "device_hours"]]
    for name, rung in rungs.items():
        gains = rung.gains or [(math.nan,) * 3] * len(heads)
        values = [x for triple in (*rung.scores, *gains) for x in triple]
        shown = ["" if math.isnan(x) else f"{x:.4f}" for x in (*values, means[name].nats)]
        rows.append([name, len(done[name]), *shown, f"{means[name].images:.0f}", f"{means[name].device_hours:.4f}"])
    return rows


def table(rungs: Mapping, means: Mapping[str, Cost], done: Mapping[str, Sequence], heads: Sequence[str]) -> list[str]:
    """The lines of the table for people."""
    first = next(iter(rungs))
    header = ["run", "seeds", *heads, *(f"{head} - {first}" for head in heads), "nats", "images", "device-hours"]
    lines = [header, ["---"] * len(header)]
    for name, rung in rungs.items():
        scores = ["{:.3f} [{:.3f}, {:.3f}]".format(*one) for one in rung.scores]
        gains = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*one) for one in rung.gains or ()] or ["-"] * len(heads)
        cost = means[name]
        nats = "-" if math.isnan(cost.nats) else f"{cost.nats:.2f}"
        lines.append(
            [name, f"{len(done[name])}", *scores, *gains, nats, f"{cost.images:,.0f}", f"{cost.device_hours:.2f}"]
        )
    return ["| " + " | ".join(line) + " |" for line in lines]
