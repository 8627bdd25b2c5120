"""How long the linear probe takes: 50,000 features of width 768 and 54 classes, as those of CT organ recognition."""

import platform
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from curia2_jax.curiabench import heads

ROWS, WIDTH, CLASSES = 50_000, 768, 54
PATIENTS, TESTED = 50, 1000


def seconds(rows: int, steps: int) -> dict[str, Any]:
    """Wall-clock of `steps` probes of `rows` made-up features on the GPU, or on one core where there is none.

    A probe is all of it: every C on four folds of patients, the last fit, and the answers for 1,000 samples.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    features, targets, patients = made_up(rows)
    asked = heads.Problem(
        features, targets, patients, features[:TESTED], np.arange(CLASSES), has_direction=True, device=device
    )
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        found = heads.linear_probe(asked)  # its answers are on the host: the device is done
        took.append(time.perf_counter() - began)
    return {
        "machine": {
            "host": platform.node(),
            "device": torch.cuda.get_device_name() if device == "cuda" else "one CPU core",
            "versions": {name: version(name) for name in ("torch", "numpy", "scikit-learn")},
        },
        "rows": rows,
        "width": WIDTH,
        "classes": CLASSES,
        "probe_s": {"min": min(took), "all": took},
        "settings": found.settings,
    }


def made_up(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (rows, 768) float32, classes and patients (rows,): correlated as tokens are; classes overlap."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(WIDTH, WIDTH)) * (np.arange(1, WIDTH + 1) ** -0.7)[:, None]
    targets, patients = rng.integers(0, CLASSES, rows), rng.integers(0, PATIENTS, rows)
    middle = 0.3 * rng.normal(size=(CLASSES, WIDTH))[targets] + 0.7 * rng.normal(size=(PATIENTS, WIDTH))[patients]
    return ((middle + rng.normal(size=(rows, WIDTH))) @ mix).astype(np.float32), targets, patients
