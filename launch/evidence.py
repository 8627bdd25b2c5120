"""What `make evidence` asks, written down before it is asked: recipe, studies, questions and marks.

Recipe: configs/demo_lejepa.py. On synthetic studies: three seeds, for each its own studies to pre-train on and its
own labelled ones, of seeds that nothing was chosen on. On real scans (a folder with samples.csv): one run, every kind
of label that labels.csv has, the patients of the role `test` for nothing but the test. Whatever comes out is printed.

Marks, on synthetic studies: by its class token the trained backbone is above the weights it began with, the whole
interval, in both questions, by both heads, with all labelled patients and with five, in every seed; and above
thumbnails by the linear probe.
"""

import collections
import json
import pathlib

from curia2_jax import files
from curia2_jax.curiabench.questions_answer import FEW, Answer, side
from curia2_jax.curiabench.results import defined
from curia2_jax.data.ingest import tables
from curia2_jax.errors import UserError
from launch import command, pipeline

SEEDS = (0, 1, 2)
STUDIES, LABELLED = 64, 120
STUDY_SEED, LABELLED_SEED = 1_000, 20_000  # plus that of the run
STEPS, REAL_STEPS = 450, 12_000
ROLES = {"pretrain": ("pool", "train"), "learn": ("train",), "test": ("test",)}  # learn: what heads learn from


def phantoms(output: pathlib.Path, steps: int | None) -> None:
    """Three seeds, each pre-trained and scored on studies of its own; then the marks."""
    found = {}
    for seed in SEEDS:
        folder = output / f"seed_{seed}"
        if not (folder / "learned" / "answers.json").exists():
            studies = pipeline.phantom_studies(folder / "studies", STUDIES, STUDY_SEED + seed)
            held_out = pipeline.phantom_studies(folder / "held_out_studies", LABELLED, LABELLED_SEED + seed)
            corpus = pipeline.ingest(studies, folder / "corpus")
            labelled = pipeline.ingest(held_out, folder / "held_out_corpus")
            pipeline.pretrain(folder / "run", corpus, steps or STEPS, seed)
            pipeline.learned(folder / "run", labelled, folder / "learned")
        found[f"seed {seed}"] = read(folder / "learned")
    say(output, found)


def real(scans: pathlib.Path, output: pathlib.Path, steps: int | None) -> None:
    """One run on the scans of the roles `pool` and `train`, asked of every kind of labels.

    Raises:
      UserError: a table is missing or lacks a column.
    """
    samples = tables.read(scans / "samples.csv", "--input", ("file", "role"))
    roles = {(scans / row["file"]).resolve(): row["role"] for row in samples}
    patients = tables.read(scans / "patients.csv", "--input", ("file", "patient"))
    labels = collections.defaultdict(list)
    for row in tables.read(scans / "labels.csv", "--input", ("image", "label", "kind")):
        labels[row["kind"]].append(((scans / row["image"]).resolve(), (scans / row["label"]).resolve()))
    chosen = [path for path, role in roles.items() if role in ROLES["pretrain"]]
    who = [((scans / row["file"]).resolve(), row["patient"]) for row in patients]
    corpus = ingest_files(output / "corpus", chosen, [], who)
    run = pipeline.pretrain(output / "run", corpus, steps or REAL_STEPS, 0)
    found = {}
    for kind, pairs in labels.items():
        folder = output / kind.replace(" ", "_")
        if not (folder / "learned").exists():
            made = {}
            for use in ("learn", "test"):
                own = [(image, label) for image, label in pairs if roles.get(image) in ROLES[use]]
                if not own:
                    raise UserError(
                        f"--input: samples.csv has no file of the role {ROLES[use][0]} for {kind!r}; write some"
                    )
                made[use] = ingest_files(folder / use, [path for pair in own for path in pair], own, who)
            pipeline.learned(run, made["test"], folder / "learned", f"--learn-from={made['learn']}")
        if (folder / "learned" / "answers.json").exists():
            found[kind] = read(folder / "learned")
    say(output, found)


def ingest_files(corpus: pathlib.Path, chosen: list, pairs: list, patients: list) -> pathlib.Path:
    """A corpus of chosen files: they, their labels and their patients are written down beside it."""
    beside = corpus.with_name(f"{corpus.name}_files")
    beside.mkdir(parents=True, exist_ok=True)
    files.write_text(beside / "input.flags", "".join(f"--input={path}\n" for path in chosen))
    tables.write(beside / "patients.csv", ("file", "patient"), patients)
    tables.write(beside / "labels.csv", ("image", "label"), pairs)
    line = ["launch/ingest.py", f"--flagfile={beside / 'input.flags'}", f"--output={corpus}"]
    labels = [f"--labels={beside / 'labels.csv'}"] if pairs else []
    command.call([*line, f"--patients={beside / 'patients.csv'}", *labels])
    return corpus


def read(learned: pathlib.Path) -> list[Answer]:
    """What launch/learned.py left."""
    return [Answer(**row) for row in json.loads((learned / "answers.json").read_text())]


def say(output: pathlib.Path, found: dict[str, list[Answer]]) -> None:
    """Every paired difference of every seed or kind, and for each comparison in how many the interval is on one side;
    printed, and in evidence.md."""
    lines = ["| | question | head | labels | test | trained | beside | trained minus it, 95 % over patients |"]
    lines.append("|---" * 8 + "|")
    sides: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, answers in found.items():
        for one in answers:
            for row, gain in one.gains.items():
                value, low, high = defined(gain)
                cells = [name, one.question, one.head, one.labelled, one.patients, f"{one.scores['trained'][0]:.3f}"]
                cells += [f"{row} {one.scores[row][0]:.3f}", f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
                few = "few" if one.labelled == FEW else "all"
                sides[row, one.question, one.head, few][side(gain)] += 1
    lines += ["", "| beside | question | head | labels | whole interval above | in between | below |", "|---" * 7 + "|"]
    for key, counted in sides.items():
        counts = [counted[name] for name in ("above", "not distinguishable from", "below")]
        lines.append("| " + " | ".join(map(str, (*key, *counts))) + " |")
    files.write_text(output / "evidence.md", "\n".join(lines) + "\n")
    print("\n" + "\n".join(lines) + f"\n\n{output / 'evidence.md'}; pictures in its folders learned")
