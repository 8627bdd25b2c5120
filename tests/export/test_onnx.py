"""The lines of docs/weights.md that make an ONNX file, run as written."""

import dataclasses
import pathlib
import re
import warnings

import numpy as np
import pytest
import transformers

from curia2_jax.export import huggingface
from tests.export.test_huggingface import config_of, images_of, random_params, theirs

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "weights.md"


@pytest.mark.parametrize("registers", [0, 4])
def test_onnx_gives_the_same_tokens(tmp_path, monkeypatch, registers):
    """Of any batch; the size is that of the example."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    import onnxruntime

    code = re.search(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 3
    config = dataclasses.replace(config_of(registers=registers), patch_size=16, image_size=96)
    folder = tmp_path / "exported" / "first"
    folder.mkdir(parents=True)
    huggingface.write(folder, random_params(config), config)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns of PyTorch
        exec(code, {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = np.concatenate([images_of(config, (96, 96))] * 2)[:3]
    (found,) = session.run(["last_hidden_state"], {"pixel_values": images})
    model = transformers.AutoModel.from_pretrained(folder).eval()
    np.testing.assert_allclose(found, theirs(model, images), rtol=0, atol=1e-5)
