"""The linear layer on patch tokens against scikit-learn and counts of pixels."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from curia2_jax.curiabench import heads
from curia2_jax.curiabench.heads import dense


def patches(n, seed):
    """Tokens of width 5 that tell one of three labels with noise, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    tokens = np.random.default_rng(9).normal(size=(3, 5))[labels] + rng.normal(0, 0.5, (n, 5))
    return tokens.astype(np.float32), labels


def asked(train, labels, val=None):
    found = heads.Problem(train, np.eye(3)[labels], np.arange(len(train)) // 40, train, np.empty(0), True)
    return found if val is None else found._replace(val=val[0], val_targets=np.eye(3)[val[1]])


def reference(train, labels, strength):
    scaler = StandardScaler().fit(train.astype(np.float64))
    model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-10)
    model.fit(scaler.transform(train.astype(np.float64)), labels)
    return lambda tokens: model.predict_log_proba(scaler.transform(tokens.astype(np.float64)))


def test_on_whole_patches_it_is_logistic_regression_with_the_strength_that_val_likes_best():
    train, labels = patches(480, 0)
    val, val_labels = patches(100, 1)
    layer, told = dense.fit_shares(asked(train, labels, (val, val_labels)))
    scores = [reference(train, labels, c)(val)[np.arange(100), val_labels].mean() for c in heads.SHARE_STRENGTHS]
    assert told["C"] == heads.SHARE_STRENGTHS[int(np.argmax(scores))]
    assert told["converged"] and told["chosen_on"] == "val"
    found = dense.label_map(torch.from_numpy(val).reshape(10, 10, 5), layer, (10, 10))
    np.testing.assert_array_equal(found.ravel(), reference(train, labels, told["C"])(val).argmax(1))
    assert dense.fit_shares(asked(train, labels))[1]["chosen_on"] == "folds"


def test_shares_of_patches_are_counts_of_pixels():
    labels = np.random.default_rng(0).integers(0, 3, (8, 12))
    got = dense.shares_of_patches(labels, 4, 3)
    for row in range(4):
        for column in range(4):
            patch = labels[row * 2 : row * 2 + 2, column * 3 : column * 3 + 3]
            np.testing.assert_allclose(got[row, column], [(patch == label).mean() for label in range(3)], atol=1e-15)


def test_a_border_between_patches_is_where_the_shares_say():
    """Logits are straight lines between the centers of patches, so the border lies where they cross."""
    tokens = torch.linspace(-1, 1, 4)[None, :, None].repeat(4, 1, 1).float()
    layer = heads.dense.logistic.Fit(torch.tensor([[0.0, 1.0]]).double(), torch.zeros(2).double(), True)
    found = dense.label_map(tokens, layer, (4, 16))
    np.testing.assert_array_equal(found, np.tile(np.arange(16) >= 8, (4, 1)))
