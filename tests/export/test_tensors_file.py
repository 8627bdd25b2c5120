"""A .safetensors file written by pieces is what the library of the format reads."""

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from curia2_jax.errors import UserError
from curia2_jax.export import tensors_file
from curia2_jax.export.tensors_file import Piece

TENSORS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
    "count": np.array(7, np.int32),
    "z": np.linspace(0, 1, 5, dtype=np.float32),
    "nothing": np.zeros((0, 3), np.float32),
}


def pieces():
    """Out of order, one tensor in two halves, one transposed in memory."""
    yield Piece("z", 0, TENSORS["z"])
    yield Piece("a.weight", 2, np.asfortranarray(TENSORS["a.weight"][2:]))
    yield Piece("count", 0, TENSORS["count"])
    yield Piece("a.weight", 0, TENSORS["a.weight"][:2])


def test_pieces_become_the_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors_file.write(path, TENSORS, pieces(), {"step": "3", "code": "ä"})
    stored = safetensors.numpy.load_file(path)
    assert stored.keys() == TENSORS.keys()
    assert all(stored[k].dtype == v.dtype and np.array_equal(stored[k], v) for k, v in TENSORS.items())
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"step": "3", "code": "ä"}
    found = tensors_file.read(path)
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in TENSORS.items()}
    assert all(np.array_equal(np.asarray(found[k]), v) for k, v in TENSORS.items())
    assert (path.stat().st_size - sum(v.nbytes for v in TENSORS.values())) % 8 == 0  # readers map numbers in place


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "were not given"),
        ([Piece("z", 0, np.zeros(5))], "z is float64"),
        ([Piece("z", 0, np.zeros((5, 1), np.float32))], r"z is float32 \(5, 1\)"),
        ([Piece("z", 3, np.zeros(5, np.float32))], "rows 3 to 8 of 5"),
    ],
)
def test_what_is_not_the_tensors_is_a_fault(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        tensors_file.write(tmp_path / "x.safetensors", {"z": TENSORS["z"]}, wrong, {})


def hostile(path, kind: str) -> None:
    safetensors.numpy.save_file({"z": TENSORS["z"]}, path)
    whole = path.read_bytes()
    header = {
        "half a file": whole[:-4],
        "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + whole[8:],
        "a header that is no JSON": whole[:8] + b"(" + whole[9:],
        "a tensor beyond the end": whole.replace(b"[0,20]", b"[8,28]"),
        "an empty file": b"",
    }
    path.write_bytes(header[kind])


@pytest.mark.parametrize(
    "kind",
    ["half a file", "a header of 2**63 bytes", "a header that is no JSON", "a tensor beyond the end", "an empty file"],
)
def test_a_damaged_file_is_one_line(tmp_path, kind):
    path = tmp_path / "x.safetensors"
    hostile(path, kind)
    with pytest.raises(UserError, match="not a whole safetensors file") as told:
        tensors_file.read(path)
    assert "\n" not in str(told.value) and str(path) in str(told.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not there"):
        tensors_file.read(tmp_path / "x.safetensors")
