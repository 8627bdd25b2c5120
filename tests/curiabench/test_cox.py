"""Cox regression against scikit-survival, and against a partial likelihood written out and minimized by SciPy."""

import numpy as np
import pytest
from scipy import optimize

from curia2_jax.curiabench import scores
from curia2_jax.curiabench.heads import cox
from curia2_jax.curiabench.heads.problem import Problem


def survival(n=60, d=4, seed=0):
    """Times with ties, a third censored, and a hazard that the features tell of."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) * np.arange(1, d + 1)
    times = np.ceil(rng.exponential(np.exp(-features @ np.linspace(0.5, -0.2, d))) * 8)
    return features, np.where(rng.random(n) < 0.67, times, -times)


def minus_log_likelihood(weights, features, targets, penalty):
    """Event by event, over everyone whose time is not before it."""
    total = 0.5 * penalty * (weights**2).sum()
    for x, time in zip(features, targets, strict=True):
        if time > 0:
            total += np.log(np.exp(features[np.abs(targets) >= time] @ weights).sum()) - x @ weights
    return total


def c_of(targets, risks):
    """Every sample a patient of its own."""
    return scores.concordance(targets, risks, np.arange(len(risks)), np.ones((1, len(risks))))[0]


@pytest.mark.parametrize("shape", [(60, 4), (20, 30)])
def test_weights_minimize_the_partial_likelihood(shape):
    features, targets = survival(*shape)
    standard = (features - features.mean(0)) / features.std(0)
    got, converged = cox.fit(features, targets, features, 10.0)
    found = optimize.minimize(minus_log_likelihood, np.zeros(shape[1]), (standard, targets, 10.0), tol=1e-12)
    assert converged
    np.testing.assert_allclose(got, standard @ found.x, rtol=0, atol=2e-6)


def test_risks_are_those_of_scikit_survival():
    linear_model = pytest.importorskip("sksurv.linear_model")
    features, targets = survival(200, 5, seed=3)
    standard = (features - features.mean(0)) / features.std(0)
    outcome = np.array([(t > 0, abs(t)) for t in targets], [("event", bool), ("time", float)])
    model = linear_model.CoxPHSurvivalAnalysis(alpha=5.0, ties="breslow", tol=1e-14).fit(standard, outcome)
    np.testing.assert_allclose(cox.fit(features, targets, features, 5.0)[0], model.predict(standard), rtol=0, atol=1e-6)


def test_concordance_is_the_share_of_pairs_counted_one_by_one():
    """With ties of times and of risks."""
    rng = np.random.default_rng(1)
    times, events, risks = rng.integers(1, 6, 40) * 1.0, rng.random(40) < 0.6, rng.integers(0, 5, 40) * 1.0
    right, pairs = 0.0, 0
    for i in range(40):
        for j in range(40):
            if events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j])):
                pairs += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    assert c_of(np.where(events, times, -times), risks) == pytest.approx(right / pairs, abs=1e-12)
    assert np.isnan(c_of(-times, risks))


def test_concordance_is_that_of_scikit_survival():
    metrics = pytest.importorskip("sksurv.metrics")
    rng = np.random.default_rng(2)
    times, events, risks = rng.integers(1, 9, 80) * 1.0, rng.random(80) < 0.6, rng.normal(size=80).round(1)
    expected = metrics.concordance_index_censored(events, times, risks)[0]
    assert c_of(np.where(events, times, -times), risks) == pytest.approx(expected, abs=1e-12)


def test_the_probe_ranks_new_patients_and_says_how_it_chose():
    """On a third of the patients; a val split that tells nothing leaves the first penalty, at the edge of the grid."""
    features, targets = survival(240, 4)
    none = np.empty(0, np.int64)
    asked = Problem(features[:160], targets[:160], np.arange(160) // 2, features[160:], none, True)
    got = cox.cox_probe(asked)
    assert c_of(targets[160:], got.outputs) > 0.7
    assert got.settings["converged"] and got.settings["chosen_on"] == "folds"
    blind = asked._replace(val=np.zeros((9, 4)), val_targets=targets[:9])
    assert cox.cox_probe(blind).settings | {"converged": 0} == {
        "penalty": 1.0, "converged": 0, "chosen_on": "val", "edge": "lowest"
    }  # fmt: skip


def test_a_patient_of_weight_two_is_two_patients():
    """Pairs within a patient of weight w count w squared times."""
    features, targets = survival(20, 3)
    risks, groups = features[:, 0], np.arange(20) // 2
    weights = np.ones((1, 10))
    weights[0, 3] = 2
    rows = np.concatenate([np.arange(20), [6, 7]])
    expected = scores.concordance(targets[rows], risks[rows], np.zeros(22, int), np.ones((1, 1)))
    np.testing.assert_allclose(scores.concordance(targets, risks, groups, weights), expected, atol=1e-12)
