"""A fingerprint is the same wherever an array lies, and another one for any damage."""

import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from curia2_jax.parallel.mesh import FSDP, ParallelConfig, make_mesh
from curia2_jax.training.fingerprints import _fingerprint, digest, fingerprints


def by_hand(x: np.ndarray) -> str:
    """The sums of fingerprints.py in Python's whole numbers."""
    mask = 2**32 - 1

    def mixed(h):
        h = (h ^ (h >> 16)) * 0x7FEB352D & mask
        h = (h ^ (h >> 15)) * 0x846CA68B & mask
        return h ^ (h >> 16)

    first = second = 0
    for place, word in enumerate(x.view(np.uint32).ravel().tolist()):
        a = mixed(word ^ mixed(place))
        first, second = first + a, second + mixed((a + 0x9E3779B9 & mask) ^ place)
    return f"{first & mask:08x}{second & mask:08x}"


@pytest.mark.parametrize(
    "x",
    [np.float32(2.5), np.int32(7), np.arange(6, dtype=np.float32), np.linspace(-1e-40, 3, 24, dtype=np.float32)],
    ids=["scalar", "count", "vector", "subnormal"],
)
def test_is_the_sum_that_its_file_says(x):
    x = np.asarray(x)
    assert fingerprints({"w": x}) == {"w": by_hand(x)}
    if x.size == 24:
        assert fingerprints({"w": x.reshape(2, 3, 4)}) == {"w": by_hand(x)}


def test_does_not_depend_on_the_mesh():
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    mesh = make_mesh(ParallelConfig(fsdp=4, accumulation=1))
    for spec in (P(), P(FSDP), P(None, FSDP)):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        assert fingerprints([placed]) == {"0": by_hand(x)}
        program = _fingerprint.lower(placed).compile().as_text()
        sent = re.findall(r"= u32\[([\d,]+)\]\S* (?:all|collective)-\w+\(", program)
        assert bool(sent) == bool(spec) and all(math.prod(map(int, size.split(","))) <= 4 for size in sent)


def test_every_bit_and_every_place_counts():
    x = np.random.default_rng(1).normal(size=64).astype(np.float32)
    words = x.view(np.uint32)
    seen = {by_hand(x)}
    for i in range(64):
        for bit in (0, 7, 22, 31):
            flipped = words.copy()
            flipped[i] ^= np.uint32(1 << bit)
            seen.update(fingerprints([flipped.view(np.float32)]).values())
    assert len(seen) == 1 + 64 * 4
    signs = words.copy()
    signs[[3, 9]] ^= np.uint32(1 << 31)  # a sum of plain words would not see two
    for damaged in (signs.view(np.float32), x[::-1].copy(), np.zeros_like(x), np.concatenate([x[:63], x[:1]])):
        seen.update(fingerprints([damaged]).values())
    assert len(seen) == 1 + 64 * 4 + 4


def test_one_digest_of_many():
    arrays = {"a": "00", "b": "01"}
    assert digest(arrays) == digest(dict(reversed(arrays.items())))
    assert len({digest(arrays), digest({"a": "01", "b": "00"}), digest({"a": "00"}), digest({})}) == 4
