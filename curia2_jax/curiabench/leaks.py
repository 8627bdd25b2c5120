"""Whether pre-training saw the patients or the images that a benchmark tests on.

Patients are compared by their salted keys, which mean the same where both were ingested with one salt, and images by
their values: slices of a corpus whose shape a test image has are decoded and hashed. An image that ingest had to shrink
is not found.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from curia2_jax.curiabench.splits import Split, content
from curia2_jax.data.corpus import layout
from curia2_jax.data.corpus.corpus import Corpus, parse
from curia2_jax.data.corpus.excluded import patients_of_tests
from curia2_jax.errors import UserError


class Leak(TypedDict):
    """What is common to the test splits and a corpus.

    `salts`: "same", "different", or "unknown" where one is not at hand; with different ones no patient can be found.
    """

    corpus: str
    salts: str
    patients: int
    patients_in_corpus: int
    images: int
    images_in_corpus: int


class Trained(NamedTuple):
    """What a run was trained on: a corpus, and which slices of it (N,) bool."""

    spec: str
    corpus: Corpus
    chosen: np.ndarray


def corpus_of_run(run: str | Path) -> Trained:
    """The corpus of a run, less what its config keeps out.

    Raises:
      UserError: the run has no config, or the corpus is not where the config says.
    """
    path = Path(run) / "config.json"
    try:
        data = json.loads(path.read_text())["data"]
        spec, where, held_out = str(data["corpus"]), str(data["where"]), float(data["held_out"])
    except FileNotFoundError:
        raise UserError(f"--run: {path} is not there; write the working directory of a run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--run: {path} names no corpus ({error}); write the working directory of a run") from None
    corpus = Corpus(spec)
    split = "train" if held_out else "all"
    return Trained(spec, corpus, corpus.chosen(where, split, held_out, patients_of_tests(data.get("exclude", ""))))


def whole_corpus(spec: str) -> Trained:
    """All slices of a corpus."""
    corpus = Corpus(spec)
    return Trained(spec, corpus, np.ones(len(corpus), bool))


def find(tests: Sequence[Split], benchmark: Path, trained: Trained) -> Leak:
    """Patients and images of test splits that are among the slices of a corpus."""
    patients = {name for split in tests for name in split.patients.tolist()}
    seen = set(trained.corpus.column("patient")[trained.chosen].tolist())
    files = sorted({path for split in tests for path in split.images})
    images, shapes = set(), set()
    for path in files:
        for one in _slices(np.load(path, mmap_mode="r")):
            images.add(content(one))
            shapes.add(one.shape)
    return {
        "corpus": trained.spec,
        "salts": _salts(benchmark, trained.spec),
        "patients": len(patients),
        "patients_in_corpus": len(patients & seen),
        "images": len(images),
        "images_in_corpus": len(images & _contents(trained, shapes)),
    }


def _slices(image: np.ndarray) -> list[np.ndarray]:
    return [image] if image.ndim == 2 else [image[..., s] for s in range(image.shape[2])]


def _contents(trained: Trained, shapes: set[tuple[int, ...]]) -> set[str]:
    """Hashes of the slices that have one of the shapes, in HU or the unit of the scanner, as benchmarks are written."""
    height, width = (np.asarray(trained.corpus.column(name)) for name in ("height", "width"))
    fits = np.zeros(len(height), bool)
    for shape in shapes:
        fits |= (height == shape[0]) & (width == shape[1])
    numbers = np.flatnonzero(fits & trained.chosen)
    slope, intercept = (trained.corpus.take(name, numbers).astype(np.float32) for name in ("slope", "intercept"))
    return {
        content(trained.corpus.read(int(number)).astype(np.float32) * a + b)
        for number, a, b in zip(numbers, slope, intercept, strict=True)
    }


def _salts(benchmark: Path, spec: str) -> str:
    """Whether the corpus that holds a benchmark and those of `spec` were ingested with one salt."""
    found = []
    for folder in (benchmark.parent, *(path for path, _ in parse(spec))):
        try:
            found.append((folder / layout.LOCAL / layout.SALT).read_bytes().strip())
        except OSError:
            return "unknown"
    return "same" if len(set(found)) == 1 else "different"


def sentence(leak: Leak) -> str:
    """What a verdict says of it."""
    patients, images = leak["patients_in_corpus"], leak["images_in_corpus"]
    if patients or images:
        return (
            f"Pre-training saw {patients} of the {leak['patients']} test patients and {images} of the {leak['images']} "
            "test images: these are not scores on new patients."
        )
    if leak["salts"] == "same":
        return (
            f"Clean: none of the {leak['patients']} test patients and {leak['images']} test images is in the corpus of "
            "pre-training."
        )
    return (
        f"None of the {leak['images']} test images is in the corpus of pre-training; its patients cannot be compared, "
        f"for the salts of their keys are {leak['salts']}."
    )
