"""The evidence: who is trained on and who is tested, seeds that share no study, and a table of whatever came out."""

import csv
import json
import pathlib

import pytest

from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError
from launch import evidence

BEGAN = "the weights it began with"


def answer(question, gain, labelled=20):
    scores = {"trained": [0.8, 0.7, 0.9], BEGAN: [0.8 - gain[0], 0.6, 0.9]}
    return {"question": question, "head": "kNN", "labelled": labelled, "scores": scores, "gains": {BEGAN: gain},
            "patients": 30}  # fmt: skip


class Machine:
    """In place of the commands: notes them, and answers like launch/learned.py."""

    def __init__(self, gains):
        self.called, self.gains = [], iter(gains)

    def call(self, line, dry_run=False):
        self.called.append(line)
        said = dict(word.lstrip("-").split("=", 1) for word in line[1:])
        if line[0].endswith("learned.py"):
            folder = pathlib.Path(said["output"])
            folder.mkdir(parents=True)
            answers = [answer("present", next(self.gains)), answer("present", next(self.gains), 5)]
            (folder / "answers.json").write_text(json.dumps(answers))


@pytest.fixture
def machine(monkeypatch):
    def make(*gains):
        made = Machine(gains)
        monkeypatch.setattr(evidence.command, "call", made.call)
        return made

    return make


UP, LEVEL, DOWN = [0.1, 0.05, 0.15], [0.1, -0.05, 0.25], [-0.1, -0.15, -0.05]


def test_no_study_is_of_two_seeds_and_what_came_out_is_told(machine, tmp_path, monkeypatch, capsys):
    made = machine(UP, UP, UP, LEVEL, UP, DOWN)
    seeds = []
    monkeypatch.setattr(phantom, "write_studies", lambda folder, n, seed: seeds.append((n, seed)))
    evidence.phantoms(tmp_path, 7)
    assert len(seeds) == len(set(seeds)) == 6
    numbers = [seed for _, seed in seeds]
    assert not set(numbers) & {0, 1, 2, 10_000}  # those on which the recipe was chosen
    trained = [line for line in made.called if line[0] == "launch/main.py"]
    assert ["configs/demo_lejepa.py:7" in " ".join(line) for line in trained] == [True] * 3
    text = capsys.readouterr().out
    assert (
        "| seed 1 | present | kNN | 5 | 30 | 0.800 | the weights it began with 0.700 | +0.100 [-0.050, +0.250] |"
        in text
    )
    assert f"| {BEGAN} | present | kNN | all | 3 | 0 | 0 |" in text
    assert f"| {BEGAN} | present | kNN | few | 1 | 1 | 1 |" in (tmp_path / "evidence.md").read_text()
    evidence.phantoms(tmp_path, 7)
    assert len(made.called) == 3 * 4  # two corpora, a run and its questions, and nothing twice


ROLES = {"pool/a.nii": "pool", "t/b.nii": "train", "t/c.nii": "test", "t/d.nii": "test"}


def scans(folder, roles=ROLES):
    for name, head, rows in (
        ("samples.csv", "file,role", roles.items()),
        ("patients.csv", "file,patient", ((file, file[-5]) for file in roles)),
        ("labels.csv", "image,label,kind", ((f, f.replace("t/", "l/"), "organ of c") for f in roles if f[0] == "t")),
    ):
        (folder / name).write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    return folder


def listed(path):
    return {pathlib.Path(line.partition("=")[2]).name for line in path.read_text().split()}


def test_nobody_of_the_test_is_pre_trained_on_or_learned_from(machine, tmp_path):
    made = machine(UP, DOWN)
    evidence.real(scans(tmp_path), tmp_path / "out", 5)
    assert listed(tmp_path / "out" / "corpus_files" / "input.flags") == {"a.nii", "b.nii"}
    task = tmp_path / "out" / "organ_of_c"
    assert listed(task / "learn_files" / "input.flags") == {"b.nii"}
    assert listed(task / "test_files" / "input.flags") == {"c.nii", "d.nii"}
    pairs = list(csv.DictReader((task / "test_files" / "labels.csv").read_text().splitlines()))
    assert [pathlib.Path(row["label"]).parent.name for row in pairs] == ["l", "l"]
    train, asked = made.called[1], made.called[-1]
    assert train[0] == "launch/main.py" and f"--config.data.corpus={tmp_path / 'out' / 'corpus'}" in train
    assert f"--data={task / 'test'}" in asked and f"--learn-from={task / 'learn'}" in asked
    text = (tmp_path / "out" / "evidence.md").read_text()
    assert "| organ of c | present | kNN | 5 |" in text and "-0.100 [-0.150, -0.050]" in text


def test_a_table_that_lacks_something_is_one_line(machine, tmp_path):
    machine()
    with pytest.raises(UserError, match=r"--input .*samples\.csv: cannot be read"):
        evidence.real(tmp_path, tmp_path / "out", 5)
    scans(tmp_path, {name: role for name, role in ROLES.items() if role != "train"})
    with pytest.raises(UserError, match=r"--input: samples\.csv has no file of the role train for 'organ of c'"):
        evidence.real(tmp_path, tmp_path / "out", 5)
