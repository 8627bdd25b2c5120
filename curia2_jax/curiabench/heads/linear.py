"""The linear probe: logistic regression on standardized features, its penalty chosen on val or on left-out patients."""

import numpy as np
import torch

from curia2_jax.curiabench.heads import choice, logistic
from curia2_jax.curiabench.heads.problem import Prediction, Problem, one_thread

REGULARIZATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
DEFAULT_C = 1e-2
MAX_STEPS = 100
CHOOSING, FINAL = 1e-5, 1e-9  # tolerances of the gradient: choosing needs the best class only


@one_thread()
def linear_probe(problem: Problem) -> Prediction:
    """Multinomial logistic regression on standardized features: probabilities (m, K).

    C is the value of `REGULARIZATION` with the highest balanced accuracy on the val split, or else on left-out
    patients, the smallest one on a tie, and the probe is then fitted to all of train. Where there is nothing to choose
    on, as with one patient, C is `DEFAULT_C`. The settings say what C was chosen on, whether it lies at an edge of the
    grid, and whether every fit converged.
    """
    fitted, numbers = np.unique(problem.targets, return_inverse=True)
    # One shift and scale for all keeps the sums exact; each fold is standardized by its own rows inside.
    center, scale = problem.train.mean(0, dtype=np.float64), problem.train.std(0, dtype=np.float64)
    put = lambda x: torch.from_numpy((x - center) / np.where(scale > 0, scale, 1)).to(problem.device)  # noqa: E731
    features = put(problem.train)
    labels = torch.eye(len(fitted), dtype=features.dtype, device=features.device)[torch.from_numpy(numbers)]
    chosen_on, trials = choice.trials(problem)
    strength, edge, converged = DEFAULT_C, "", True
    if trials:
        scores = np.zeros((len(trials), len(REGULARIZATION)))
        for number, trial in enumerate(trials):
            rows = torch.from_numpy(trial.fit).to(features.device)
            judged = put(trial.features)
            fits = logistic.fit(features[rows], labels[rows], REGULARIZATION, CHOOSING, MAX_STEPS)
            converged &= all(one.converged for one in fits)
            for c, one in enumerate(fits):
                found = logistic.probabilities(judged, one).argmax(1)
                scores[number, c] = _balanced_accuracy(fitted[found.cpu().numpy()], trial.targets)
        strength, edge = choice.best(REGULARIZATION, scores)
    (last,) = logistic.fit(features, labels, (strength,), FINAL, MAX_STEPS)
    outputs = np.zeros((len(problem.test), len(problem.classes)))
    found = logistic.probabilities(put(problem.test), last)
    outputs[:, np.searchsorted(problem.classes, fitted)] = found.cpu().numpy()
    converged &= last.converged
    return Prediction(outputs, {"C": strength, "converged": converged, "chosen_on": chosen_on, "edge": edge})


def _balanced_accuracy(found: np.ndarray, targets: np.ndarray) -> float:
    """Mean recall of the classes that occur.

    The number of scikit-learn's balanced_accuracy_score, which warns in two ways of folds that lack a class.
    """
    right = found == targets
    return float(np.mean([right[targets == label].mean() for label in np.unique(targets)]))
