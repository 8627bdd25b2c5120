"""Sweeps as data: for each run its stages, for each stage a config and what is changed in it.

    python launch/sweep.py --sweep=configs/ablations.py:ladder --workdir=runs/ladder --corpus=CORPUS [--data=BENCHMARK]

A run of two stages is a chain: the second stage starts from the checkpoint of the first. SEEDS are those of a sweep
that has more than seed 0; every run of it is made with each, and its scores are averaged.
"""

import functools
import itertools

from ml_collections import ConfigDict

from configs import demo, small

Stage = tuple[str, dict[str, object]]  # config file, overrides with dotted keys

# From Curia to Curia-2, one change a rung; the regularizer and its weight are one change, as are the two crop sizes
# and the stage that restores the resolution.
CHANGES: list[tuple[str, dict[str, object]]] = [
    ("anatomical crops", {"crops.placement": "anatomical"}),
    ("anatomical masks", {"masks.placement": "anatomical"}),
    ("SigReg", {"objective.koleo.weight": 0.0, "objective.sigreg.weight": 0.05}),
    ("higher learning rate", {"optim.base_lr": 1e-3}),
]


def _at(config: ConfigDict, key: str) -> object:
    return functools.reduce(getattr, key.split("."), config)


def ladder(
    config: str, first: str, start: dict[str, object], changes: list[tuple[str, dict[str, object]]]
) -> dict[str, list[Stage]]:
    """Runs that add one change after the other to a baseline."""
    runs, overrides = {first: [(config, dict(start))]}, dict(start)
    for name, change in changes:
        overrides = overrides | change
        runs[f"+ {name}"] = [(config, overrides)]
    return runs


def grid(config: str, values: dict[str, tuple[object, ...]]) -> dict[str, list[Stage]]:
    """A run for every combination of values of keys, named by them."""
    runs: dict[str, list[Stage]] = {}
    for chosen in itertools.product(*values.values()):
        overrides = dict(zip(values, chosen, strict=True))
        runs[", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in overrides.items())] = [(config, overrides)]
    return runs


CURIA_2 = {key: value for _, change in CHANGES for key, value in change.items()}
LOW = {"crops.global_size": 256, "crops.local_size": 96}

DEMO = demo.get_config()
DEMO_CURIA = {
    "crops.placement": "uniform",
    "masks.placement": "uniform",
    "objective.koleo.weight": 0.1,
    "objective.sigreg.weight": 0.0,
    "optim.base_lr": DEMO.optim.base_lr / 5,  # as 2e-4 is to 1e-3
}
DEMO_CHANGES = [(name, {key: _at(DEMO, key) for key in change}) for name, change in CHANGES]

INVARIANCE = {"objective.invariance.weight": 0.95, "objective.sigreg.placement": "projector"}
SWEEPS: dict[str, dict[str, list[Stage]]] = {
    "ladder": ladder("configs/curia_vitb.py", "Curia", {}, CHANGES)
    | {"+ low resolution, then 512": [("configs/curia_vitb.py", CURIA_2 | LOW), ("configs/vitb_hires.py", {})]},
    "sigreg_weight": grid("configs/vitb.py", {"objective.sigreg.weight": (0.01, 0.02, 0.05, 0.1)}),
    "objectives": {
        "Curia-2": [("configs/vitb.py", {})],
        "+ invariance": [("configs/vitb.py", INVARIANCE)],
        "LeJEPA": [("configs/lejepa_vitb.py", {})],
    },
    # In small, with as many images each; LeJEPA's step is the cheaper one.
    "demo_objectives": {
        "DINO + iBOT": [("configs/demo.py", {})],
        "+ invariance": [("configs/demo.py", INVARIANCE | {"heads.projector_width": 64})],
        "LeJEPA": [("configs/demo_lejepa.py:300", {})],
    },
    # As many images in batches of several sizes, by the rule of configs/small.py.
    "demo_batch": {f"batch {batch}": [("configs/demo.py", small.scaling(DEMO, batch))] for batch in (32, 64, 128)},
    # The ladder in small, from the values that configs/demo.py has.
    "demo_ladder": ladder("configs/demo.py", "Curia", DEMO_CURIA, DEMO_CHANGES)
    | {
        "+ low resolution, then 128": [
            ("configs/demo.py", {"crops.global_size": 64, "crops.local_size": 32}),
            ("configs/demo.py:100", {"optim.base_lr": 1e-3, "schedule.freeze_last_layer_steps": 0}),
        ]
    },
}

SEEDS: dict[str, tuple[int, ...]] = {"demo_ladder": (0, 1, 2), "demo_objectives": (0, 1, 2)}
