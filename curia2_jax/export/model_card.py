"""The README.md of an export, as model hubs read it: facts of the folder, of its run, its corpus and its scores."""

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2

from curia2_jax.errors import UserError
from curia2_jax.export.huggingface import WEIGHTS

FILE = "README.md"


class Facts(NamedTuple):
    """What the card is told beside the files of the folder.

    `license`: an identifier as hubs have them, or "". `corpus`: of `corpus_summary`. `scores`: of `scores`. `largest`:
    difference that the proof found.
    """

    license: str = ""
    corpus: Mapping[str, Any] | None = None
    scores: Mapping[str, Any] | None = None
    largest: float | None = None


def checked_license(name: str) -> str:
    """Raises UserError when it cannot be the identifier of a license."""
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name):
        raise UserError(f"--license: found {name!r}; write an identifier such as apache-2.0, cc-by-nc-4.0 or other")
    return name


def corpus_summary(contracts: Sequence[Mapping[str, Any]], spacing: Sequence[float]) -> dict[str, Any]:
    """Counts over the corpora of a run, without a name, a key or a place.

    Args:
      contracts: of the corpora.
      spacing: 5, 50 and 95 % of the pixel spacing, in mm.
    """

    def total(key: str) -> dict[str, int]:
        names = sorted({name for contract in contracts for name in contract[key]})
        return {name: sum(contract[key].get(name, 0) for contract in contracts) for name in names}

    counts = {key: sum(contract[key] for contract in contracts) for key in ("slices", "series", "studies", "patients")}
    by = {"modalities": total("slices_by_modality"), "planes": total("slices_by_plane")}
    return {**counts, **by, "spacing": list(spacing)}


def scores(results: Mapping[str, Any], where: str, weights: pathlib.Path) -> dict[str, Any]:
    """What a report says of the primary score of each task.

    Args:
      results: the content of its results.json.
      where: what to call the report in errors.
    Raises:
      UserError: it is of other weights, or of another form.
    """
    try:
        if results["model"]["sha256"] != sha256(weights):
            raise UserError(f"--report {where}: scores of other weights; score this checkpoint with launch/evaluate.py")
        head, metric = (results["settings"]["primary"][key] for key in ("head", "metric"))
        tasks = []
        for name, task in results["tasks"].items():
            of_rows = {row: _score(task["rows"][row][head][metric]) for row in ("trained", "random", "pixels")}
            tasks.append({"name": name, "patients": int(task["test"]["patients"]), **of_rows})
        resampled = " or ".join(sorted({task["resampled"] for task in results["tasks"].values()}))
        said = {"verdict": results["verdict"], "head": head, "metric": metric, "resampled": resampled}
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError(
            f"--report {where}: results.json is of another form ({type(e).__name__}: {e}); score the model anew"
        ) from None
    return {**said, "tasks": tasks}


def _score(score: Sequence[float | None]) -> list[float] | None:
    """A value and its interval, or None where the report has none."""
    value, low, high = score
    return None if value is None or low is None or high is None else [float(value), float(low), float(high)]


def sha256(path: pathlib.Path) -> str:
    """Of a file, as `sha256sum` says it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(directory: pathlib.Path, preprocessing: Mapping[str, Any], model: Mapping[str, Any], facts: Facts) -> None:
    """Writes README.md into a folder that has its weights already.

    Args:
      preprocessing: the content of preprocessing.json.
      model: that of config.json.
    """
    environment = jinja2.Environment(
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(str(text).split()))
    environment.filters["score"] = lambda score: (
        "undefined" if score is None else "{:.3f} [{:.3f}, {:.3f}]".format(*score)
    )
    template = environment.from_string(resources.files(__package__).joinpath(f"{FILE}.j2").read_text("utf-8"))
    side, registers = preprocessing["resize"]["size"], model.get("num_register_tokens", 0)
    between = f"registers 1 to {registers}, " if registers else ""
    patches = (side // model["patch_size"]) ** 2
    text = template.render(
        facts._asdict(),
        model=model,
        side=side,
        source=preprocessing["source"],
        tokens=f"class token 0, {between}{patches} patches from {1 + registers} on",
        weights_sha256=sha256(directory / WEIGHTS),
    )
    (directory / FILE).write_text(text + "\n", encoding="utf-8")
