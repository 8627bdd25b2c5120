"""What results.json says of the classes and labels of a task beside its scores, from the answers alone."""

from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from curia2_jax.curiabench import intervals, scores
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.protocol import Scoring
from curia2_jax.data.ingest.benchmark_schema import KINDS, MULTI_LABEL


def tree(found: dict[tuple[str, str], Any]) -> dict[str, dict[str, Any]]:
    """{row: {head: ...}}."""
    out: dict[str, dict[str, Any]] = {}
    for (row, head), value in found.items():
        out.setdefault(row, {})[head] = value
    return out


def confusions(one: Answers) -> dict:
    """`confusion` of results.json, of the first seed; nothing in kinds without classes."""
    if not _is_of_classes(one):
        return {}
    labels = range(len(one.classes))
    return {
        "confusion": tree(
            {
                key: confusion_matrix(one.targets, seeds[0].argmax(1), labels=labels).tolist()
                for key, seeds in one.outputs.items()
            }
        )
    }


def labels(one: Answers, scoring: Scoring) -> dict:
    """`labels` of results.json: every score of every label, of the first seed; nothing in other kinds."""
    if one.kind != MULTI_LABEL.name:
        return {}
    groups = np.unique(one.units, return_inverse=True)[1]

    def each(outputs: np.ndarray) -> dict[str, list[float | None]]:
        parts = {
            metric.name: metric.parts(one.targets, outputs, groups)[0] for metric in scoring.metrics if metric.parts
        }
        return {name: [None if np.isnan(v) else float(v) for v in values] for name, values in parts.items()}

    return {"labels": tree({key: each(seeds[0]) for key, seeds in one.outputs.items()})}


def rare_classes(one: Answers) -> dict[str, int]:
    """Classes of the test split with fewer patients than an interval can be read from, and how many they have."""
    if not _is_of_classes(one):
        return {}
    groups = np.unique(one.units, return_inverse=True)[1]
    counts = scores.patients_of_classes(one.targets, groups, len(one.classes)).tolist()
    return {name: count for name, count in zip(one.classes, counts, strict=True) if 0 < count < intervals.RARE}


def _is_of_classes(one: Answers) -> bool:
    return any(kind.has_classes for kind in KINDS if kind.name == one.kind)
