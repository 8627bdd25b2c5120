"""Strict numerics for every test, eight virtual CPU devices, and the one way to real scans."""

import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As many workers as cores: PyTorch's threads would spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Less of the compile time; the programs are the same but for the machine code of small loops. The second flag is as old
# as the JAX of Python 3.11, and a newer one dies of it.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import pathlib
import subprocess
from collections.abc import Iterator

import jax
import jaxtyping
import pytest

from tests import array_types

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes and dtypes of the array functions are checked at every call; before anything imports them.
CHECKED = (
    *("curia2_jax.models", "curia2_jax.losses", "curia2_jax.training.resample", "curia2_jax.training.augment"),
    *("curia2_jax.data.crops.boxes", "curia2_jax.data.crops.gaussian", "curia2_jax.data.crops.masks"),
)
jaxtyping.install_import_hook(CHECKED, f"{array_types.__name__}.checked")

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A disk of 8 MiB, which takes root to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a small disk: mounting a tmpfs needs root")
    yield folder
    while folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real scans, which users of the project do not have."""
    folder = pathlib.Path(os.environ.get("CURIA_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real scans: no folder {folder} (set CURIA_SHARED_DATA)")
    return folder
