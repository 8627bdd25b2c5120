"""Retrieval against a loop over all pairs."""

import numpy as np

from curia2_jax.curiabench.heads import retrieval
from curia2_jax.curiabench.heads.problem import Problem


def test_the_nearest_labels_and_their_recall_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    train, test, labels, wanted = (
        rng.normal(size=(30, 4)),
        rng.normal(size=(8, 4)),
        *(rng.integers(0, 9, n) for n in (30, 8)),
    )
    got = retrieval.nearest_labels(Problem(train, labels, np.arange(30), test * 7, np.arange(9), True)).outputs
    assert got.shape == (8, 10)
    hits = dict.fromkeys(retrieval.DEPTHS, 0)
    for query, label, row in zip(test, wanted, got, strict=True):
        cosine = [query @ x / np.sqrt((query @ query) * (x @ x)) for x in train]
        ranked = labels[np.argsort(cosine)[::-1]]
        np.testing.assert_array_equal(row, ranked[:10])
        for depth in hits:
            hits[depth] += label in ranked[:depth]
    for depth, count in hits.items():
        assert retrieval.recalled(wanted, got, depth).mean() == count / 8


def test_a_small_gallery_is_listed_whole():
    got = retrieval.nearest_labels(Problem(np.eye(3), np.array([4, 5, 6]), np.arange(3), np.eye(3), np.arange(7), True))
    np.testing.assert_array_equal(got.outputs[:, 0], [4, 5, 6])
    assert got.outputs.shape == (3, 3) and got.settings == {"gallery": 3}
