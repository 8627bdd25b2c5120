"""Retrieval against a loop over all pairs."""

import numpy as np

from curia2_jax.curiabench import scores
from curia2_jax.curiabench.heads import retrieval
from curia2_jax.curiabench.heads.problem import Problem


def test_recall_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    train, test, labels, wanted = (
        rng.normal(size=(30, 4)),
        rng.normal(size=(8, 4)),
        *(rng.integers(0, 9, n) for n in (30, 8)),
    )
    got = retrieval.nearest_of_classes(Problem(train, labels + 20, np.arange(30), test * 7, np.arange(20, 29), True))
    hits = dict.fromkeys(retrieval.DEPTHS, 0)
    for query, label in zip(test, wanted, strict=True):
        cosine = [query @ x / np.sqrt((query @ query) * (x @ x)) for x in train]
        ranked = labels[np.argsort(cosine)[::-1]]
        for depth in hits:
            hits[depth] += label in ranked[:depth]
    assert hits[10] > hits[1]
    for depth, count in hits.items():
        score = scores.recall_within(depth)(wanted, got.outputs, np.arange(8), np.ones((1, 8)))
        np.testing.assert_allclose(score, count / 8, atol=1e-12)


def test_a_small_gallery_is_ranked_whole():
    labels = np.array([4, 5, 6])
    got = retrieval.nearest_of_classes(Problem(np.eye(3), labels, np.arange(3), np.eye(3), np.arange(7), True))
    np.testing.assert_array_equal(got.outputs.argmax(1), [4, 5, 6])
    np.testing.assert_allclose(np.sort(got.outputs, 1)[:, 3:], [[0, 1 / 3, 1 / 2, 1]] * 3)
