"""What healthy runs of the shipped small configs went through: ranges of metrics, written from measured runs."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from curia2_jax import files
from curia2_jax.telemetry.diagnosis import Config, Finding, Row, recent, values

PATH = pathlib.Path(__file__).with_name("reference_curves.json")
METRICS = ("loss", "nats/dino", "nats/ibot", "rankme", "feature_std")
SECTIONS = ("total_steps", "crops", "masks", "augment", "model", "heads", "objective", "optim", "schedule")
PARTS = 6  # of a run: its curves are compared at the end of each
MARGIN = 0.3  # of the median, and half of what lies between the runs, beside them


def flat(config: Config) -> dict[str, Any]:
    """{"optim.base_lr": 1e-3} of what makes a run learn as it does, as JSON has it; not of machines, nor the seed."""

    def leaves(name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {name: value}
        return {k: v for key, one in value.items() for k, v in leaves(f"{name}.{key}", one).items()}

    found = {k: v for name in SECTIONS if name in config for k, v in leaves(name, config[name]).items()}
    batch = {key: config["data"][key] for key in ("global_batch", "group_size")}
    return json.loads(json.dumps(found | {f"data.{key}": value for key, value in batch.items()}))


def ranges(runs: Sequence[Sequence[Row]], total: int) -> dict[str, dict[str, list[float]]]:
    """{metric: {step: [lowest, highest]}} that runs like these may have at the ends of PARTS."""
    out: dict[str, dict[str, list[float]]] = {}
    for part in range(1, PARTS + 1):
        step = total * part // PARTS
        for name in METRICS:
            found = [now for rows in runs if (now := recent(_until(rows, step), name)) is not None]
            if found:
                margin = MARGIN * abs(sorted(found)[len(found) // 2]) + (max(found) - min(found)) / 2
                low, high = min(found) - margin, max(found) + margin
                out.setdefault(name, {})[str(step)] = [float(f"{low:.3g}"), float(f"{high:.3g}")]
    return out


def _until(rows: Sequence[Row], step: int) -> list[Row]:
    return [row for row in rows if int(row["step"] or 0) <= step]


def outside(rows: Sequence[Row], config: Config) -> list[Finding]:
    """Where a run of a shipped config is not as the runs that it was measured by; nothing for any other config."""
    mine = flat(config)
    for one in shipped():
        if any(mine.get(key, value) != value for key, value in one["config"].items()):
            continue
        out = []
        for name, by_step in one["ranges"].items():
            past = [step for step in by_step if int(step) <= int(rows[-1]["step"] or 0)]
            now = recent(_until(rows, int(past[-1])), name) if past and values(rows, name) else None
            if now is not None and not by_step[past[-1]][0] <= now <= by_step[past[-1]][1]:
                low, high = by_step[past[-1]]
                says = f"{name} at step {int(past[-1]):,} is {now:.3g}; runs of {one['name']} have {low:g} to {high:g}"
                out.append(Finding("unlike its reference", says))
        return out
    return []


@functools.cache
def shipped() -> list[dict[str, Any]]:
    """[{name, config, ranges}] of reference_curves.json."""
    return json.loads(PATH.read_text())


def record(name: str, runs: Sequence[Sequence[Row]], config: Config, path: pathlib.Path) -> None:
    """Writes the ranges of `runs`, all of this config, in place of what `path` has of that name."""
    others = [one for one in (json.loads(path.read_text()) if path.exists() else []) if one["name"] != name]
    mine = {"name": name, "config": flat(config), "ranges": ranges(runs, config["total_steps"])}
    files.write_text(path, json.dumps(sorted([*others, mine], key=lambda one: one["name"]), indent=1) + "\n")
