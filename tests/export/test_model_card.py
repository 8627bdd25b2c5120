"""The model card: what hubs read of it, what it may not say, and its examples run as they are written."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
import transformers
import yaml

from curia2_jax.curia_image_processor import CuriaImageProcessor
from curia2_jax.errors import UserError
from curia2_jax.export import model_card, origin, processor
from curia2_jax.export.model_card import Facts
from tests.data import small_studies
from tests.export.test_processor import CONFIG, META
from tests.small_benchmark import write_model

MODEL = {
    "architectures": ["Dinov2Model"], "num_hidden_layers": 3, "hidden_size": 64, "patch_size": 8, "num_channels": 1,
    "use_swiglu_ffn": True,
}  # fmt: skip
CONTRACT = {
    "slices": 1200, "series": 30, "studies": 20, "patients": 11, "hash": "c" * 64,
    "slices_by_modality": {"CT": 700, "MR": 500}, "slices_by_plane": {"axial": 1200},
    "options": {"input": ["/data/hospital/MUELLER_HANS"]},
}  # fmt: skip

NOTHING = Facts()


def results_of(sha256: str, name: str = "organs") -> dict:
    """The content of a results.json, as far as the card reads it."""
    rows = {row: {"knn": {"auroc": [v, v - 0.1, v + 0.05]}} for row, v in (("trained", 0.9), ("random", 0.6))}
    rows["pixels"] = {"knn": {"auroc": [None, None, None]}}
    return {
        "model": {"sha256": sha256},
        "settings": {"primary": {"head": "knn", "metric": "auroc"}},
        "tasks": {name: {"rows": rows, "test": {"patients": 9}, "resampled": "patient"}},
        "verdict": "It is better than random weights.",
    }


def card(folder, facts: Facts = NOTHING, model: dict = MODEL) -> str:
    (folder / "model.safetensors").write_bytes(b"weights")
    model_card.write(folder, processor.contract(CONFIG, META), model, facts)
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("license", ["", "cc-by-nc-4.0"])
def test_the_front_matter_is_what_hubs_read(tmp_path, license):
    text = card(tmp_path, Facts(license=license))
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "transformers" and head["pipeline_tag"] == "image-feature-extraction"
    assert {"medical", "dinov2", "ct", "mri"} <= set(head["tags"])
    assert head.get("license", "") == license
    assert ("No license was named" in text) == (not license)


@pytest.mark.parametrize("registers", [0, 4])
def test_it_says_which_token_is_what_and_where_all_comes_from(tmp_path, registers):
    """Facts of the folder's own files: sizes, tokens in their order, the step, and the hashes."""
    text = card(tmp_path, model=MODEL | ({"num_register_tokens": 4} if registers else {}))
    assert "# Dinov2Model: 3 blocks of width 64, 48 px" in text and "| input | 1 x 48 x 48, patches of 8 |" in text
    between, first = ("registers 1 to 4, ", 5) if registers else ("", 1)
    assert f"`last_hidden_state`: class token 0, {between}36 patches from {first} on; after the final norm" in text
    assert "| feed-forward | SwiGLU |" in text and "step 7 |" in text
    config = hashlib.sha256(origin.training_config(CONFIG).encode()).hexdigest()
    weights = hashlib.sha256(b"weights").hexdigest()
    assert f"| `model.safetensors` | {weights} |" in text and f"| `training_config.json` | {config} |" in text
    assert f"| contract of the corpus | {'c' * 64} |" in text and "were not compared" in text
    assert "largest difference was 2.0e-06" in card(tmp_path, Facts(largest=2e-6))


def test_the_corpus_is_counted_and_nobody_is_named(tmp_path):
    """Two corpora of a mixture, added up."""
    second = CONTRACT | {"slices_by_modality": {"CT": 1200}, "slices_by_plane": {"axial": 1100, "sagittal": 100}}
    text = card(tmp_path, Facts(corpus=model_card.corpus_summary([CONTRACT, second], [0.5, 0.78, 1.5])))
    assert "2,400 slices of 60 series, 40 studies and 22 patients" in text
    for row in ("modality CT | 1,900", "modality MR | 500", "plane axial | 2,300", "plane sagittal | 100"):
        assert f"| {row} |" in text
    assert "median 0.78 mm, 90 % between 0.50 and 1.50 mm" in text
    assert "MUELLER" not in text and "/data" not in text


def test_the_training_config_names_no_place_and_no_person():
    config = CONFIG | {
        "data": {"corpus": "hospital", "where": "patient == 'a1b2'", "seed": 3},
        "init_from": "runs",
        "checkpoint": {"elsewhere": "/home/hans/x"},
        "empty": {},
    }
    said = json.loads(origin.training_config(config))
    assert said["data"] == {"corpus": "", "where": "", "seed": 3} and said["init_from"] == ""
    assert said["checkpoint"] == {"elsewhere": ""} and said["model"] == CONFIG["model"] and said["empty"] == {}
    kept = json.loads(origin.training_config({"data": {"where": "modality == 'CT'"}}))
    assert kept["data"]["where"] == "modality == 'CT'"


def test_scores_are_told_with_their_intervals(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    told = model_card.scores(results_of(model_card.sha256(weights), "a|b\n<script>"), "R", weights)
    text = card(tmp_path, Facts(scores=told))
    assert "0.900 [0.800, 0.950] | 0.600 [0.500, 0.650] | undefined |" in text
    assert r"| a\|b \<script\> | 9 |" in text  # one cell of one row, whatever a task is called
    assert "It is better than random weights." in text and "95 % intervals over patients" in text


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: r["model"].update(sha256="0"), "scores of other weights"),
        (lambda r: r["settings"].pop("primary"), "another form (KeyError: 'primary')"),
        (lambda r: r.update(tasks=[]), "another form (AttributeError"),
        (lambda r: r["tasks"]["organs"]["rows"]["trained"]["knn"].update(auroc=[1.0]), "another form (ValueError"),
        (lambda r: r.pop("verdict"), "another form (KeyError: 'verdict')"),
    ],
)
def test_a_report_that_does_not_fit_is_one_line(tmp_path, damage, words):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    results = results_of(model_card.sha256(weights))
    damage(results)
    with pytest.raises(UserError, match=r"--report R") as told:
        model_card.scores(results, "R", weights)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["", "Apache 2.0", "mit\nlicense: x", "[a]", "-", "a b"])
def test_a_license_is_an_identifier(name):
    with pytest.raises(UserError, match="--license: found") as told:
        model_card.checked_license(name)
    assert "\n" not in str(told.value)
    assert model_card.checked_license("cc-by-nc-4.0") == "cc-by-nc-4.0"


@pytest.mark.parametrize("kind", ["scan.nii.gz", "series/*.dcm"])
def test_its_examples_show_the_model_what_it_was_trained_on(tmp_path, monkeypatch, kind):
    """Ten lines each, run as written on files made here: the tokens are those of the slices, oriented PL, in HU."""
    folder = write_model(tmp_path / "model")
    card(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (tmp_path / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    code = next(block for block in blocks if kind in block)
    assert len(blocks) == 2 and len(code.splitlines()) <= 10
    truth = small_studies.body((21, 40, 48))
    small_studies.write_nifti(tmp_path / "scan.nii.gz", truth)
    small_studies.save_dicom(tmp_path / "series", small_studies.dicom_slices(truth))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    names: dict = {}
    exec(code.replace("THIS_FOLDER", str(folder)), names)
    np.testing.assert_array_equal(names["slices"], truth)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(**CuriaImageProcessor(crop_size=32)(truth[::10])).last_hidden_state
    np.testing.assert_allclose(names["tokens"].detach(), expected, rtol=0, atol=1e-5)
    assert len(expected) == 3
