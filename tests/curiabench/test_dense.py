"""The linear head on patch tokens against scikit-learn and arithmetic on pixels."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from curia2_jax.curiabench.heads import dense


def striped(n, grid=4, pixels=4, seed=0):
    """Slices of whole patches of one of three labels, which their tokens tell with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (n, grid, grid))
    tokens = np.eye(3)[labels] @ np.ones((3, 5)) * 0 + np.random.default_rng(9).normal(size=(3, 5))[labels]
    tokens = torch.from_numpy((tokens + rng.normal(0, 0.5, tokens.shape)).astype(np.float32))
    return dense.Maps(tokens, list(np.kron(labels, np.ones((1, pixels, pixels), int)))), labels


def test_on_whole_patches_it_is_logistic_regression_at_their_centers():
    """Each patch one label: scikit-learn's decision at the chosen C, to the patch."""
    train, labels = striped(30)
    test, _ = striped(6, seed=1)
    shapes = [(4, 4)] * 6
    found, told = dense.linear_segmentation(train, np.arange(30) // 3, test.tokens, shapes, 3, None)
    flat, rows = (one.tokens.double().numpy().reshape(-1, 5) for one in (train, test))
    scaler = StandardScaler().fit(flat)
    model = LogisticRegression(C=told.settings["C"], solver="newton-cholesky", tol=1e-10)
    expected = model.fit(scaler.transform(flat), labels.ravel()).predict(scaler.transform(rows))
    np.testing.assert_array_equal(np.stack(found).ravel(), expected)
    assert told.settings["converged"] and told.settings["chosen_on"] == "folds"


def test_the_strength_is_that_of_the_best_dice_on_val():
    train, _ = striped(20)
    val, _ = striped(10, seed=3)
    _, told = dense.linear_segmentation(train, np.zeros(20), val.tokens, [(16, 16)] * 10, 3, val)
    scores = []
    for strength in dense.STRENGTHS:
        flat = train.tokens.double().numpy().reshape(-1, 5)
        labels = np.stack(train.labels)[:, ::4, ::4].ravel()
        scaler = StandardScaler().fit(flat)
        model = LogisticRegression(C=strength, solver="newton-cholesky").fit(scaler.transform(flat), labels)
        logits = model.decision_function(scaler.transform(val.tokens.double().numpy().reshape(-1, 5)))
        logits = torch.from_numpy(logits).reshape(10, 4, 4, 3).permute(0, 3, 1, 2)
        maps = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear").argmax(1).numpy()
        truth, dice = np.stack(val.labels), []
        for label in (1, 2):
            a, b = maps == label, truth == label
            dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        scores.append(np.mean(dice))
    assert told.settings["C"] == dense.STRENGTHS[int(np.argmax(scores))] and told.settings["chosen_on"] == "val"


def test_shares_of_patches_are_counts_of_pixels():
    labels = np.random.default_rng(0).integers(0, 3, (8, 12))
    got = dense.shares_of_patches(labels, 4, 3)
    for row in range(4):
        for column in range(4):
            patch = labels[row * 2 : row * 2 + 2, column * 3 : column * 3 + 3]
            np.testing.assert_allclose(got[row, column], [(patch == label).mean() for label in range(3)], atol=1e-15)


def test_twice_the_tokens_see_what_one_grid_cannot():
    """A checkerboard of half a patch: its borders need the finer grid, whose tokens come from the input at twice."""
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 2, (12, 8, 8))
    labels = list(np.kron(fine, np.ones((1, 2, 2), int)))
    coarse = fine.reshape(12, 4, 2, 4, 2).mean((2, 4))
    dice = []
    for one in (coarse, fine):
        tokens = torch.from_numpy(one[..., None].astype(np.float32))
        found, _ = dense.linear_segmentation(
            dense.Maps(tokens[:8], labels[:8]), np.arange(8), tokens[8:], [(16, 16)] * 4, 2, None
        )
        dice.append(dense.mean_dice(found, labels[8:], 2))
    assert dice[1] > 0.95 > dice[0] + 0.1
