"""The shuffled stream: every slice once an epoch, whoever asks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curia2_jax.data.corpus.sampling import Sampler, Stratum, runs


def naive_runs(groups, keep):
    """Consecutive kept rows of one group, in plain Python."""
    out = []
    for i, group in enumerate(groups):
        if not keep[i]:
            continue
        if out and i == out[-1][0] + out[-1][1] and groups[i - 1] == group:
            out[-1][1] += 1
        else:
            out.append([i, 1])
    return [r[0] for r in out], [r[1] for r in out]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=12),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(0, 2**32)),
)
def test_runs_match_plain_python(pieces, block, seed):
    """On random groups, with and without filters and caps, a few rows at a time."""
    groups = np.repeat(np.arange(len(pieces)), [n for n, _ in pieces]).astype(np.int32)
    keep = None if seed is None else np.random.default_rng(seed).random(len(groups)) < 0.6
    start, length, slots = runs(groups, keep, None, block)
    expected = naive_runs(groups.tolist(), [True] * len(groups) if keep is None else keep.tolist())
    assert (start.tolist(), length.tolist()) == expected
    assert slots.tolist() == [0, *np.cumsum(expected[1]).tolist()]
    start, length, slots = runs(groups, keep, 3, block)
    for group in np.unique(groups):
        kept = int(np.sum((groups == group) & (True if keep is None else keep)))
        mine = groups[start] == group if len(start) else np.zeros(0, bool)
        assert np.diff(slots)[mine].sum() == min(kept, 3)


def stratum(name, weight, sizes, first=0, cap=None):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    start, length, slots = runs(groups, None, cap)
    return Stratum(name, weight, start + first, length, slots)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000, 4097])
def test_an_epoch_shows_every_slice_once_and_the_next_in_another_order(size):
    """Another seed has another order too."""
    sampler = Sampler.from_strata([stratum("a", 1.0, [size])])
    drawn = sampler.records(np.arange(3 * size), seed=5).reshape(3, size)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == list(range(size))
    if size > 7:
        assert not (drawn[0] == drawn[1]).all() and not (drawn[0] == np.arange(size)).all()
        assert not (sampler.records(np.arange(size), seed=6) == drawn[0]).all()


def test_any_position_can_be_asked_alone():
    """The answer does not depend on what is asked with it."""
    sampler = Sampler.from_strata([stratum("a", 1.0, [30, 50]), stratum("b", 3.0, [11], 80)])
    positions = np.random.default_rng(0).integers(0, 10**12, 500)
    together = sampler.records(positions, 3)
    assert [int(sampler.records(np.array([p]), 3)[0]) for p in positions[:50]] == together[:50].tolist()
    np.testing.assert_array_equal(sampler.records(positions.reshape(20, 25), 3), together.reshape(20, 25))


def test_strata_come_in_the_proportion_of_their_weights_in_every_batch():
    """Batches of 64 draws."""
    sampler = Sampler.from_strata(
        [stratum("a", 2.0, [1000]), stratum("b", 1.0, [10], 1000), stratum("c", 1.0, [500], 1010)]
    )
    drawn = sampler.records(np.arange(64 * 200), 0).reshape(200, 64)
    share = (drawn < 1000).mean(axis=1)
    assert abs(share.mean() - 0.5) < 1e-3 and np.abs(share - 0.5).max() < 0.05
    assert abs(np.mean((drawn >= 1000) & (drawn < 1010)) - 0.25) < 1e-3
    assert len(np.unique(drawn[drawn >= 1010][:500])) == 500  # within one epoch of the stratum nothing comes twice


def test_a_cap_shows_long_series_as_often_as_short_ones_and_all_their_slices_in_the_end():
    """Four draws of a series an epoch."""
    sampler = Sampler.from_strata([stratum("a", 1.0, [100, 4, 9], cap=4)])
    assert len(sampler) == 12
    drawn = sampler.records(np.arange(12 * 400), 1).reshape(400, 12)
    for epoch in drawn:
        assert np.histogram(epoch, [0, 100, 104, 113])[0].tolist() == [4, 4, 4]
        assert sorted(epoch[(epoch >= 100) & (epoch < 104)].tolist()) == [100, 101, 102, 103]
    counts = np.bincount(drawn.ravel(), minlength=113)[:100]
    assert counts.min() > 0 and 4 < counts.mean() < 30
    np.testing.assert_allclose(counts.reshape(4, 25).sum(axis=1), 400)  # one draw a quarter and epoch


def test_orders_look_random():
    """Neighboring positions are uncorrelated, and first places are uniform over seeds (chi-square, p = 1e-4)."""
    sampler = Sampler.from_strata([stratum("a", 1.0, [1000])])
    order = sampler.records(np.arange(1000), 0)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.12
    first = np.array([int(sampler.records(np.array([0]), seed)[0]) for seed in range(2000)])
    counts = np.bincount(first // 100, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7
