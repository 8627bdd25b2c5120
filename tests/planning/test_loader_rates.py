"""The loader's benchmark on a small corpus: it runs, and its PIL crops are those that the accelerator cuts."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from configs import common
from curia2_jax.data.crops.batches import batches
from curia2_jax.data.readers import phantom
from curia2_jax.errors import UserError
from curia2_jax.planning import loader_rates
from curia2_jax.training import resample
from curia2_jax.training.recipe import recipe_from
from tests.data.small_corpus import write_small_corpus


@pytest.fixture
def recipe(tmp_path):
    write_small_corpus(tmp_path / "corpus")
    config = common.curia2("S")
    config.data.update(corpus=str(tmp_path / "corpus"), global_batch=8, group_size=4, canvas=80, num_threads=1)
    config.crops.update(global_size=32, local_size=16, num_local=2)
    return recipe_from(config.to_dict())


def test_rates_are_positive_and_ordered(recipe, capsys):
    loader, reading, half, pil = loader_rates.run(recipe, seconds=0.3)
    assert 0 < pil.per_core < loader.per_core < reading.per_core and half.what == "loader, config.data.reduce=1"
    out = capsys.readouterr().out
    assert (
        "kB a slice: HTJ2K reversible" in out
        and "8 slices a batch" in out
        and "first batch after" in out
        and "loader + crops by PIL" in out
    )


def test_a_corpus_of_the_other_codec_is_read_whole_only(recipe, tmp_path, capsys):
    write_small_corpus(tmp_path / "zstd", codec="zstd")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, corpus=str(tmp_path / "zstd")))
    assert [rate.what for rate in loader_rates.run(recipe, seconds=0.1)] == [
        "loader", "  of it: read, checksum, decode", "loader + crops by PIL",
    ]  # fmt: skip
    assert "kB a slice: zstd" in capsys.readouterr().out


def test_monai_beside_the_loader(recipe, tmp_path, capsys):
    with pytest.raises(UserError, match=r"no \.nii\.gz in it"):
        loader_rates.run(recipe, nifti=str(tmp_path))
    phantom.write_studies(tmp_path, 1, seed=0, size=48)
    if importlib.util.find_spec("monai"):
        assert "MONAI + DataLoader" in loader_rates.run(recipe, seconds=0.3, nifti=str(tmp_path))[-1].what
    else:
        with pytest.raises(UserError, match=r"needs MONAI, not installed"):
            loader_rates.run(recipe, nifti=str(tmp_path))


def test_pil_cuts_the_crops_of_the_accelerator(recipe):
    with batches(recipe.data, recipe.crops, recipe.masks, 16, seed=0) as stream:
        batch = next(stream)
    crops = loader_rates._pil(batch, recipe)
    assert len(crops) == 8 * 4
    cut = jax.jit(resample.crop_and_resize, static_argnums=3)
    for name, views_of, size in (("global_boxes", slice(0, 2), 32), ("local_boxes", slice(2, 4), 16)):
        ours = np.asarray(cut(batch["slices"].astype(np.float32), batch["extent"], batch[name], size))
        for row in range(8):
            theirs = np.stack(crops[row * 4 : row * 4 + 4][views_of])
            np.testing.assert_allclose(ours[row], theirs, atol=2.0)  # of 2048 gray values
