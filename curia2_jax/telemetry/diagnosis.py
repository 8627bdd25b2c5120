"""What is wrong with a run, in words, and which key mends it: a pure function of the rows of its metrics.jsonl.

Every rule looks at the medians of the newest rows, some beside the first row, and speaks only where it is sure: a
healthy run has no findings. docs/learning.md says what each number means and where the bounds were measured.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, float | None]
Config = Mapping[str, Any]  # nested, as config.json or dataclasses.asdict(recipe)

SHOWN = ("loss", "nats/", "teacher_information", "rankme", "feature_std", "probe", "monitor/", "update_ratio/")
WINDOW = 100  # newest rows that are looked at, beside the first
RECENT = 5  # of them a median is taken
PATIENCE = 100  # steps after the warm-up, or after 2,000 of it, before a run that learns nothing is told so
NO_UPDATE = 1e-7  # of the norm of the parameters; the smallest rate of the recipes moves a hundred times that
NO_NATS, WRONG = 0.03, -0.1  # learned of the other view: between them answers are uniform
ONE_POINT, FEW = 1.5, 4.0  # RankMe of class tokens; the second where it was four times as much at the start
LEAP = 0.05  # of the norm of the backbone in one step; healthy runs have 0.002
UNIFORM_ATTENTION = 0.999  # of the largest entropy
DEAD = 0.05  # share of the prototypes that could be the nearest of some slice, that are; healthy runs pass 0.1 soon
WAITING = 0.3  # share of the time that the devices have no batch
SPIKE, DEVIATIONS = 0.1, 8.0  # of the median before, and median deviations from it
LOOKS, FORGOTTEN = 3, 0.1  # of as many looks a median is taken; the share of the best of them that may be lost
MANY_LOOKS = 10  # since the warm-up: before, the place that random weights keep gives way to what is learned
KNOWN = ("probe/structures_ridge", "probe/height_ridge")  # by the class token; the first that was asked


class Finding(NamedTuple):
    """`kind` is one word for programs, `says` one sentence for people, with the key that mends it."""

    kind: str
    says: str


def diagnose(rows: Sequence[Row], config: Config) -> list[Finding]:
    """What is wrong, the gravest first; nothing where nothing is, or where it is too early to say.

    Args:
      rows: of metrics.jsonl, in order, each with `step`. config: of the run.
    """
    seen = [*rows[:1], *rows[1:][-WINDOW:]]
    if not any(row.get("loss") is not None for row in seen):
        return []
    still = _no_update(seen)
    if still:  # then nothing else can be good
        return [still, *_only(_loader_bound(seen, config))]
    judged = _late_enough(seen, config)
    learning = (_collapse, _dead_prototypes, _uniform)  # of these one follows from another
    first = next((found for rule in learning if judged and (found := rule(seen, config))), None)
    decay = _dense_decay(rows, config) if judged and not first else None
    return _only(first, decay, _spike(seen), _loader_bound(seen, config))


def _only(*found: Finding | None) -> list[Finding]:
    return [one for one in found if one]


def values(rows: Sequence[Row], name: str) -> list[float]:
    """The values of a metric, in order; rows without it left out."""
    return [value for row in rows if (value := row.get(name)) is not None]


def recent(rows: Sequence[Row], name: str) -> float | None:
    """Median of the newest values of a metric, None where there are none."""
    return statistics.median(found[-RECENT:]) if (found := values(rows, name)) else None


def _late_enough(rows: Sequence[Row], config: Config) -> bool:
    return int(rows[-1]["step"] or 0) >= min(config["schedule"]["warmup_steps"], 2000) + PATIENCE


def _no_update(rows: Sequence[Row]) -> Finding | None:
    """Weights that stand still: a rate of zero, or no gradient."""
    names = {name for row in rows[-RECENT:] for name in row if name.startswith("update_ratio/")}
    still = sorted(name.partition("/")[2] for name in names if (recent(rows, name) or 0.0) < NO_UPDATE)
    if not still or len(values(rows, "loss")) < RECENT:
        return None
    if not any(recent(rows, f"grad_norm/{name}") for name in still):
        return Finding("no update", f"no gradient reaches {', '.join(still)}: write config.objective.*.weight above 0")
    return Finding(
        "no update",
        f"{', '.join(still)} moved by less than {NO_UPDATE:g} of its norm a step at a learning rate of "
        f"{recent(rows, 'lr') or 0.0:.3g}: write a larger config.optim.base_lr",
    )


def _collapse(rows: Sequence[Row], config: Config) -> Finding | None:
    """All class tokens are one or lie on a line, whatever the loss says."""
    name = "monitor/rankme" if values(rows, "monitor/rankme") else "rankme"
    rank, start = recent(rows, name), values(rows, name)[0] if values(rows, name) else 0.0
    if rank is None or not (rank < ONE_POINT or (rank < FEW and rank < start / 4)):
        return None
    losses = values(rows, "loss")[-RECENT:]
    largest = max(values(rows, "update_ratio/backbone"), default=0.0)
    if not any(config["objective"][term]["weight"] for term in ("sigreg", "koleo")):
        mend = "write config.objective.sigreg.weight=0.05"
    elif largest > LEAP:
        mend = f"one step moved the backbone by {largest:.1%}: write a lower config.optim.base_lr"
    else:
        mend = "write a larger config.objective.sigreg.weight, or a lower config.optim.base_lr"
    return Finding(
        "collapse",
        f"class tokens of all images are nearly one (RankMe {rank:.2f}, {start:.1f} at the start) and the loss, "
        f"{losses[-1]:.4g}, does not show it; {mend}",
    )


def _uniform(rows: Sequence[Row], config: Config) -> Finding | None:
    """The student knows nothing of the other view; which key mends it follows from what else is seen."""
    nats = recent(rows, "nats/dino")
    if nats is None or nats >= NO_NATS:
        return None
    model, schedule, knows = config["model"], config["schedule"], recent(rows, "teacher_information")
    entropy = recent(rows, "monitor/attention_entropy")
    if entropy is not None and entropy > UNIFORM_ATTENTION and model["init"] != "fan_in":
        mend = f"attention is uniform ({entropy:.4f} of the largest entropy): write config.model.init=fan_in"
    elif knows is not None and knows < NO_NATS:
        mend = (
            f"the teacher tells {knows:.2f} nats itself: write a lower config.schedule.teacher_temp (it is "
            f"{schedule['teacher_temp']:g})"
        )
    elif config["masks"]["probability"] == 1:
        mend = "every crop is masked: write config.masks.probability=0.5"
    else:
        mend = f"write a lower config.schedule.teacher_momentum (it is {schedule['teacher_momentum']:g})"
    what = "a guess" if nats > WRONG else "worse than a guess"
    return Finding(
        "uniform answers", f"what the student tells of the other view is {what} ({round(nats, 2) + 0:.2f} nats); {mend}"
    )


def _dead_prototypes(rows: Sequence[Row], config: Config) -> Finding | None:
    """Most prototypes are nobody's nearest."""
    used, nats = values(rows, "monitor/prototypes"), recent(rows, "nats/dino") or 0.0
    if not used or used[-1] >= DEAD or WRONG < nats < NO_NATS:  # who knows nothing has no use for any
        return None
    count = config["heads"]["dino_prototypes"]
    if config["objective"]["centering"] != "sinkhorn_knopp":
        mend = "write config.objective.centering=sinkhorn_knopp"
    else:
        mend = f"write a smaller config.heads.dino_prototypes (it is {count:,})"
    return Finding("dead prototypes", f"of the prototypes that could be used {used[-1]:.0%} are: {mend}")


def _dense_decay(rows: Sequence[Row], config: Config) -> Finding | None:
    """Patch tokens lose where things lie while the class token keeps what it knows, as in long runs of large models."""
    past = [row for row in rows if int(row["step"] or 0) > config["schedule"]["warmup_steps"]]
    dice, known = _since_best(past, "monitor/linear_dice"), [_since_best(past, name) for name in KNOWN]
    token = next((one for one in known if one), None)
    if not dice or not token or dice.lost < FORGOTTEN or token.lost > dice.lost / 2:
        return None
    return Finding(
        "dense decay",
        f"dense features decay: linear Dice fell by {dice.lost:.0%} of its best, {dice.best:.3f} near step "
        f"{dice.step:,}, while what the class token knows did not; for dense tasks export a checkpoint of then "
        "(config.checkpoint.keep_every_steps keeps some) and write a lower config.optim.base_lr or config.total_steps",
    )


class _Best(NamedTuple):
    step: int
    best: float
    lost: float  # of it, as a share, by now


def _since_best(rows: Sequence[Row], name: str) -> _Best | None:
    """The best median of LOOKS values of a metric beside the newest; None of fewer than MANY_LOOKS values, or where no
    median is above 0."""
    seen = [(int(row["step"] or 0), value) for row in rows if (value := row.get(name)) is not None]
    medians = [
        sorted(seen[end - LOOKS : end], key=lambda one: one[1])[LOOKS // 2] for end in range(LOOKS, len(seen) + 1)
    ]
    if len(seen) < MANY_LOOKS:
        return None
    step, best = max(medians, key=lambda one: one[1])
    return _Best(step, best, 1 - medians[-1][1] / best) if best > 0 else None


def _spike(rows: Sequence[Row]) -> Finding | None:
    """A loss far above those before it, among the newest rows."""
    logged = [row for row in rows if row.get("loss") is not None]
    losses = values(logged, "loss")
    for number in range(max(2 * RECENT, len(losses) - 2 * RECENT), len(losses)):
        before = losses[number - 2 * RECENT : number]
        usual = statistics.median(before)
        deviation = statistics.median(abs(loss - usual) for loss in before)
        if losses[number] - usual > max(SPIKE * abs(usual), DEVIATIONS * deviation):
            norm = logged[number].get("grad_norm/backbone") or 0.0
            return Finding(
                "spike",
                f"the loss jumped from {usual:.4g} to {losses[number]:.4g} before step {logged[number]['step']:,} "
                f"(gradient of the backbone {norm:.3g}): if it does not come back, write a lower config.optim.base_lr",
            )
    return None


def _loader_bound(rows: Sequence[Row], config: Config) -> Finding | None:
    """Devices that wait for data."""
    waited = values(rows, "data_wait")[1:]  # the first row has the start of the loader in it
    if len(waited) < RECENT or statistics.median(waited[-RECENT:]) < WAITING:
        return None
    share = statistics.median(waited[-RECENT:])
    data = config["data"]
    return Finding(
        "loader-bound",
        f"{share:.0%} of the time is waiting for batches: write a larger config.data.num_threads (it is "
        f"{data['num_threads']}), then config.data.num_workers (it is {data['num_workers']})",
    )


def since_start(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(metric, at the first row that has it, now) of what tells of learning, of those that there are."""
    names = [name for row in rows for name in row if name.startswith(SHOWN)]
    out = []
    for name in sorted(dict.fromkeys(names)):
        if found := values(rows, name):
            out.append((name, f"{found[0]:.3g}", f"{found[-1]:.3g}"))
    return out
