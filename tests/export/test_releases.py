"""An export in PyTorch, by each release of transformers that its card names: model, image processor, AutoBackbone."""

import os
import subprocess
import sys

import numpy as np
import pytest

from curia2_jax.export import huggingface, processor
from tests.export.test_huggingface import config_of, ours, random_params
from tests.export.test_processor import CONFIG, META, scan

# What the release of the last series of 4 needs and PyTorch does not bring.
RELEASE_4 = [
    "transformers==4.57.6", "huggingface_hub<1.0", "tokenizers>=0.22,<=0.23.0", "requests", "urllib3",
    "charset-normalizer", "idna", "certifi",
]  # fmt: skip
SCRIPT = """
import sys
import numpy as np, torch, transformers
folder, image, out = sys.argv[1:]
transformers.logging.set_verbosity_error()
model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
assert model.dtype == torch.float32 and model.config.dtype == torch.float32
process = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
pixels = process(np.load(image), modality="CT", return_tensors="pt")
# AutoBackbone of release 5 looks for a folder on the hub first; the class that it would take does not.
named = getattr(transformers, model.config.architectures[0].replace("Model", "Backbone"))
kind = transformers.AutoBackbone if transformers.__version__.startswith("4.") else named
backbone = kind.from_pretrained(folder, out_indices=[1, -1], local_files_only=True)
with torch.inference_mode():
    tokens = model(**pixels).last_hidden_state
    maps = backbone(pixels.pixel_values).feature_maps
np.savez(out, release=transformers.__version__, kind=type(backbone).__name__, pixels=pixels.pixel_values, tokens=tokens,
         first=maps[0], last=maps[-1])
"""


@pytest.fixture(scope="module", params=["", pytest.param("4.57", marks=pytest.mark.soak)])
def release(request, tmp_path_factory):
    """(its first digits, the environment of a process that has it)."""
    here = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("cache"))}
    if not request.param:
        return "5.", here
    folder = tmp_path_factory.mktemp("release")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *RELEASE_4]
    if subprocess.run(pip, check=False).returncode:
        pytest.skip(f"transformers {request.param}: pip could not fetch it")
    return request.param, here | {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("registers", [0, 4])
def test_tokens_and_feature_maps_are_ours(release, tmp_path, registers):
    digits, environment = release
    config, folder = config_of(registers=registers), tmp_path / "hf"
    folder.mkdir()
    params = random_params(config)
    huggingface.write(folder, params, config)
    processor.write(folder, processor.contract(CONFIG, META))
    np.save(tmp_path / "image.npy", scan((60, 50)))
    line = [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, folder, tmp_path / "image.npy", tmp_path / "out"]
    subprocess.run(list(map(str, line)), env=environment, cwd=tmp_path, check=True)
    with np.load(tmp_path / "out.npz") as found:
        assert str(found["release"]).startswith(digits)
        assert found["kind"] == ("Dinov2WithRegistersBackbone" if registers else "Dinov2Backbone")
        expected = ours(config, params, found["pixels"])
        np.testing.assert_allclose(found["tokens"], expected, rtol=0, atol=1e-5)
        grid = expected[:, 1 + registers :].reshape(1, 6, 6, -1).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found["last"], grid, rtol=0, atol=1e-5)
        assert found["first"].shape == grid.shape and np.abs(found["first"] - grid).max() > 0.01
