"""Sweeps as data: for each run its stages, for each stage a config and what is changed in it.

    python launch/sweep.py --sweep=configs/ablations.py:ladder --workdir=runs/ladder --corpus=CORPUS [--data=BENCHMARK]

A run of two stages is a chain: the second stage starts from the checkpoint of the first.
"""

import functools

from ml_collections import ConfigDict

from configs import demo

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

SWEEPS: dict[str, dict[str, list[Stage]]] = {
    "ladder": ladder("configs/curia_vitb.py", "Curia", {}, CHANGES)
    | {"+ low resolution, then 512": [("configs/curia_vitb.py", CURIA_2 | LOW), ("configs/vitb_hires.py", {})]},
    "sigreg_weight": {
        f"SigReg {weight}": [("configs/vitb.py", {"objective.sigreg.weight": weight})]
        for weight in (0.01, 0.02, 0.05, 0.1)
    },
    # The ladder in small, from the values that configs/demo.py has: for a look at the machinery, not for conclusions.
    "demo_ladder": ladder("configs/demo.py", "Curia", DEMO_CURIA, DEMO_CHANGES)
    | {
        "+ low resolution, then 128": [
            ("configs/demo.py", {"crops.global_size": 64, "crops.local_size": 32}),
            ("configs/demo.py:100", {"optim.base_lr": 1e-3, "schedule.freeze_last_layer_steps": 0}),
        ]
    },
}
