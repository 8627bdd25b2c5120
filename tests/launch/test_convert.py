"""Orbax -> PyTorch -> Orbax through the command line, on a tiny run."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl import flags

from configs import common
from curia2_jax.errors import UserError
from curia2_jax.export import continuation, huggingface, tensors_file
from curia2_jax.training import checkpoints, initial
from curia2_jax.training.fingerprints import digest, fingerprints
from curia2_jax.training.recipe import recipe_from
from curia2_jax.training.state import abstract_state, init_state
from tests.export.test_huggingface import on_disk, weights_of
from tests.export.test_model_card import results_of

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tiny(**model) -> dict:
    config = common.curia2("S")
    config.model.update({"width": 32, "depth": 2, "heads": 2, "patch_size": 8, **model})
    config.crops.global_size, config.crops.local_size = 32, 16
    config.heads.update(
        {"dino_prototypes": 16, "ibot_prototypes": 16, "hidden": 16, "dino_bottleneck": 8, "ibot_bottleneck": 8}
    )
    return json.loads(json.dumps(config.to_dict()))


def save_run(run: pathlib.Path, config: dict) -> dict[int, dict]:
    """A run with checkpoints at 3 and 5, teacher unlike student; {step: teacher's backbone}."""
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config))
    recipe = recipe_from(config)
    draw = np.random.default_rng(0)
    backbones = {}
    with checkpoints.Checkpoints(run, recipe.checkpoint) as writer:
        for step in (3, 5):
            state = jax.tree.map(lambda a: draw.normal(0.3, 0.2, a.shape).astype(a.dtype), abstract_state(recipe))
            state = state.replace(step=np.int32(step))
            writer.save(state, {"corpus": "0" * 64})
            backbones[step] = state.teacher["backbone"]
    return backbones


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, save_run(folder, tiny())


@pytest.fixture(scope="module")
def convert():
    """`launch/convert.py` in this process: main(arguments) -> exit code."""
    from launch import convert

    def main(*arguments: str) -> int:
        flags.FLAGS.unparse_flags()
        for name in (
            "checkpoint",
            "from-pretrained",
            "output",
            "verify",
            "license",
            "report",
            "with-heads",
            "with-optimizer",
        ):
            flags.FLAGS[name].unparse()
        try:
            return convert.run(flags.FLAGS(["convert.py", *map(str, arguments)]))
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            return 2

    return main


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_there_and_back(run, convert, tmp_path, capsys):
    folder, backbones = run
    model = recipe_from(tiny()).model
    assert convert("--checkpoint", folder, "--output", tmp_path / "hf") == 0
    assert convert("--checkpoint", f"{folder}@3", "--output", tmp_path / "hf3") == 0
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "README.md",
        "config.json",
        "curia_image_processor.py",
        "model.safetensors",
        "preprocessing.json",
        "preprocessor_config.json",
        "training_config.json",
    }
    # The newest step by default, another by name; the teacher and not the student.
    assert_same(weights_of(tmp_path / "hf", model), backbones[5])
    assert_same(weights_of(tmp_path / "hf3", model), backbones[3])
    source = json.loads((tmp_path / "hf3" / "preprocessing.json").read_text())["source"]
    assert source["step"] == 3
    teacher = checkpoints.restore_item(folder, 3, "teacher")
    assert source["teacher_digest"] == digest(fingerprints(teacher))

    assert convert("--from-pretrained", tmp_path / "hf", "--output", tmp_path / "orbax") == 0
    found, at = checkpoints.parse(str(tmp_path / "orbax"))
    assert_same(checkpoints.restore_item(found, at, "teacher"), {"backbone": backbones[5]})
    weights = sum(path.stat().st_size for path in (tmp_path / "orbax").rglob("*") if path.is_file())
    assert weights < 1.5 * (tmp_path / "hf" / "model.safetensors").stat().st_size  # one copy, for both
    recipe = dataclasses.replace(recipe_from(tiny()), init_from=str(tmp_path / "orbax"))
    begun = initial.pretrained(recipe)  # what training starts from
    for tree in (begun.params, begun.teacher):
        assert_same(tree, {"backbone": backbones[5]})
    again = on_disk(checkpoints.restore_item(found, at, "teacher")["backbone"], model)
    stored = safetensors.numpy.load_file(tmp_path / "hf" / "model.safetensors")
    assert again.keys() == stored.keys() and all(again[k].tobytes() == stored[k].tobytes() for k in stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "hf3", "orbax"]  # no partial folders


def test_the_card_tells_license_corpus_and_scores_of_these_weights(run, convert, tmp_path, capsys):
    """A report counts for the weights that it scored; the corpus of this run is not at hand, which is said."""
    folder, _ = run
    assert convert("--checkpoint", folder, "--output", tmp_path / "hf") == 0
    said = capsys.readouterr().out
    assert "no license was named" in said and "not at hand" in said
    weights = (tmp_path / "hf" / "model.safetensors").read_bytes()
    scored = results_of(hashlib.sha256(weights).hexdigest())
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(json.dumps(scored))
    again = ("--output", tmp_path / "hf", "--report", tmp_path / "report", "--license", "cc-by-nc-4.0")
    assert convert("--checkpoint", folder, *again) == 0
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == weights
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card and "| organs | 9 | 0.900 [0.800, 0.950] |" in card
    capsys.readouterr()
    assert convert("--checkpoint", f"{folder}@3", *again) == 2
    line = capsys.readouterr().err
    assert "scores of other weights" in line and line.count("\n") == 1
    assert (tmp_path / "hf" / "README.md").read_text() == card


def test_heads_and_optimizer_go_along_and_come_back(run, convert, tmp_path):
    """Every array of the checkpoint; what comes in has the heads, to the bit."""
    folder, _ = run
    assert convert("--checkpoint", folder, "--output", tmp_path / "heads", "--with-heads") == 0
    assert [path.name for path in (tmp_path / "heads" / "training").iterdir()] == ["heads.safetensors"]
    assert convert("--checkpoint", folder, "--output", tmp_path / "all", "--with-optimizer") == 0
    found = continuation.read_state(tmp_path / "all")
    for item in ("params", "opt_state", "centers"):
        assert_same(found[item], checkpoints.restore_item(folder, 5, item))
    teacher = checkpoints.restore_item(folder, 5, "teacher")
    for name in ("heads", "all"):
        assert convert("--from-pretrained", tmp_path / name, "--output", tmp_path / "orbax") == 0
        assert_same(checkpoints.restore_item(tmp_path / "orbax", 0, "teacher"), teacher)
    hf = json.loads((tmp_path / "all" / "preprocessing.json").read_text())["source"]
    with safetensors.safe_open(tmp_path / "all" / "training" / "training_state.safetensors", "np") as file:
        assert file.metadata()["step"] == str(hf["step"]) == "5"
        assert file.metadata()["training_config_sha256"] == hf["training_config_sha256"]


def test_a_converted_backbone_has_no_heads_to_give(run, convert, tmp_path, capsys):
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    assert convert("--checkpoint", f"{tmp_path / 'run'}@0", "--output", tmp_path / "x", "--with-heads") == 2
    line = capsys.readouterr().err
    assert "--with-heads: " in line and "a backbone alone" in line and line.count("\n") == 1


def test_step_0_is_what_the_run_began_with(run, convert, tmp_path):
    """A run keeps no checkpoint of it: drawn again from its seed."""
    folder, _ = run
    assert convert("--checkpoint", f"{folder}@0", "--output", tmp_path / "began") == 0
    recipe = recipe_from(tiny())
    first = jax.jit(lambda: init_state(jax.random.key(recipe.seed), recipe).teacher["backbone"])()
    found = weights_of(tmp_path / "began", recipe.model)
    assert jax.tree.structure(found) == jax.tree.structure(jax.tree.map(np.asarray, first))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(first), strict=True):
        np.testing.assert_allclose(a, np.asarray(b, a.dtype), rtol=1e-6)
    assert json.loads((tmp_path / "began" / "preprocessing.json").read_text())["source"]["step"] == 0


def test_an_earlier_export_is_replaced_anything_else_is_not(run, convert, tmp_path, capsys):
    folder, backbones = run
    hf, orbax = tmp_path / "hf", tmp_path / "orbax"
    for step in (3, 5):
        assert convert("--checkpoint", f"{folder}@{step}", "--output", hf) == 0
        assert convert("--from-pretrained", hf, "--output", orbax) == 0
        assert_same(checkpoints.restore_item(orbax, 0, "teacher")["backbone"], backbones[step])

    capsys.readouterr()
    for arguments in (("--checkpoint", folder), ("--from-pretrained", hf)):
        assert convert(*arguments, "--output", folder) == 2  # a run is no export
        line = capsys.readouterr().err
        assert line.startswith("error: --output") and line.count("\n") == 1
    assert checkpoints.steps(folder) == [3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "orbax"]


def test_a_failure_leaves_the_earlier_export(run, convert, tmp_path, capsys, monkeypatch):
    folder, backbones = run
    hf = tmp_path / "hf"
    assert convert("--checkpoint", f"{folder}@3", "--output", hf) == 0

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors_file, "write", full)
    assert convert("--checkpoint", folder, "--output", hf) == 2
    assert "No space left" in capsys.readouterr().err
    assert_same(weights_of(hf, recipe_from(tiny()).model), backbones[3])
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either --checkpoint RUN or --from-pretrained"),
        (["--checkpoint", "a", "--from-pretrained", "b"], "either"),
        (["--checkpoint", "a"], "--output: missing"),
        (["--checkpoint", "nowhere", "--output", "{tmp}/x"], "nowhere"),
        (["--checkpoint", "{run}@4", "--output", "{tmp}/x"], "write one of 3, 5"),
        (["--from-pretrained", "{tmp}", "--output", "{tmp}/x"], "config.json: not there"),
        (["--checkpoint", "{run}", "--output", "{run}/config.json"], "--output"),
        (["--checkpoint", "{run}", "--output", "{run}/config.json/x"], "cannot write"),
        (["--checkpoint", "{run}", "--output", "{tmp}/x", "--license", "mine: [x]"], "--license: found 'mine: [x]'"),
        (["--checkpoint", "{run}", "--output", "{tmp}/x", "--report", "{tmp}/none"], "results.json: not there"),
        (["--from-pretrained", "a", "--output", "{tmp}/x", "--license", "mit"], "--license: goes with --checkpoint"),
    ],
)
def test_a_mistake_is_one_line(run, convert, tmp_path, capsys, arguments, words):
    arguments = [a.format(run=run[0], tmp=tmp_path) for a in arguments]
    assert convert(*arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and words in line and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_refuses_a_model_that_transformers_lacks(run, convert, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps(tiny(interpolation="offset")))
    assert convert("--checkpoint", tmp_path / "run", "--output", tmp_path / "hf") == 2
    assert "interpolation" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_verify_agrees(run, tmp_path):
    """The whole command in its own process, PyTorch in another."""
    command = [sys.executable, "launch/convert.py", "--checkpoint", run[0], "--output", tmp_path / "hf", "--verify"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "hf" / "parity.json").read_text())
    assert {entry["size"] for entry in said["probes"]} == {16, 32, 48}
    assert "verify: largest difference" in done.stdout
    assert (tmp_path / "hf" / "model.safetensors").exists()


def wrong_tensor(monkeypatch, name, damage):
    """Exports after this have one wrong tensor."""
    right = huggingface.pieces

    def wrong(backbone, model):
        for piece in right(backbone, model):
            yield piece._replace(values=damage(piece.values.copy())) if piece.name == name else piece

    monkeypatch.setattr(huggingface, "pieces", wrong)


def test_verify_finds_a_wrong_weight(run, convert, tmp_path, capsys, monkeypatch):
    """One transposed kernel: loads without a complaint, computes something else."""
    wrong_tensor(monkeypatch, "encoder.layer.1.attention.output.dense.weight", lambda x: np.ascontiguousarray(x.T))
    assert convert("--checkpoint", run[0], "--output", tmp_path / "hf", "--verify") == 1
    assert "differ by more than" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_verify_finds_what_is_not_finite(run, convert, tmp_path, capsys, monkeypatch, value):
    """A difference that is no number is no agreement."""
    wrong_tensor(monkeypatch, "layernorm.weight", lambda x: np.where(np.arange(len(x)) == 0, np.float32(value), x))
    assert convert("--checkpoint", run[0], "--output", tmp_path / "hf", "--verify") == 1
    assert "differ by more than" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
