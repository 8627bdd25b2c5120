"""Keys and configs of earlier releases: what was typed is refused with the new name, what lies in a run is read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from curia2_jax.training.terms import TERMS

# Keys that had another name, and what is written instead.
RENAMED = {
    "views": "augment",
    "objective.dino_weight": "objective.dino.weight",
    "objective.ibot_weight": "objective.ibot.weight",
    "objective.regularizer": "objective.sigreg.weight or objective.koleo.weight, 0 for none",
    "objective.regularizer_weight": "objective.sigreg.weight or objective.koleo.weight",
    "objective.sigreg_placement": "objective.sigreg.placement",
    "objective.sigreg_slices": "objective.sigreg.directions",
    "objective.sigreg_knots": "objective.sigreg.knots",
    "objective.sigreg_t_max": "objective.sigreg.t_max",
}


def upgraded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The nested config of a run that an earlier release started, in the keys of this one; one of this stays as it is.

    What was typed is refused with the new name; what lies in a run is read.
    """
    new = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    if "views" in new:
        new["augment"] = new.pop("views")
    new.setdefault("init", {"adapt": "positions:interpolate"})
    for key, then in (("reduce", 0), ("exclude", "")):
        new.get("data", {}).setdefault(key, then)
    new.setdefault("guard", {"nonfinite": "stop", "limit": 10, "spike": 0.0, "collapse": "warn"})
    new.setdefault("probe", {"every_steps": 0, "slices": 512, "corpus": ""})
    new.get("schedule", {}).setdefault("freeze_backbone_steps", 0)
    for key, then in (("init", "normal_0.02"), ("position_init", "normal"), ("positions", "learned")):
        new.get("model", {}).setdefault(key, then)
    new.get("augment", {}).setdefault("window", ())
    new.setdefault("probe", {"every_steps": 0, "slices": 512, "corpus": ""})
    new.get("heads", {}).setdefault("projector_width", 512)
    objective = new.get("objective", {})
    if "regularizer" in objective:
        kind, weight = objective.pop("regularizer"), objective.pop("regularizer_weight")
        for name in ("dino", "ibot"):
            objective[name] = {"weight": objective.pop(f"{name}_weight")}
        objective["koleo"] = {"weight": weight if kind == "koleo" else 0.0}
        objective["sigreg"] = {
            "weight": weight if kind == "sigreg" else 0.0,
            "placement": objective.pop("sigreg_placement"),
            "directions": objective.pop("sigreg_slices"),
            "knots": objective.pop("sigreg_knots"),
            "t_max": objective.pop("sigreg_t_max"),
        }
    for term in TERMS:  # one that is younger than the run
        if objective and term.name not in objective:
            objective[term.name] = dataclasses.asdict(term.config(weight=0.0))
    return new
