"""What learns from frozen features: one file a head, each a pure function of a `Problem`."""

from curia2_jax.curiabench.heads.choice import FOLDS
from curia2_jax.curiabench.heads.cox import PENALTIES, cox_probe
from curia2_jax.curiabench.heads.dense import SHARE_STRENGTHS
from curia2_jax.curiabench.heads.knn import NEIGHBORS, TEMPERATURE, nearest_neighbors, neighbor_mean
from curia2_jax.curiabench.heads.linear import DEFAULT_C, REGULARIZATION, linear_probe
from curia2_jax.curiabench.heads.multi_label import linear_labels, neighbor_labels
from curia2_jax.curiabench.heads.problem import Prediction, Problem
from curia2_jax.curiabench.heads.retrieval import DEPTHS, nearest_of_classes
from curia2_jax.curiabench.heads.ridge import RIDGE, ridge_probe

__all__ = [
    "DEFAULT_C", "DEPTHS", "FOLDS", "NEIGHBORS", "PENALTIES", "REGULARIZATION", "RIDGE", "SHARE_STRENGTHS",
    "TEMPERATURE", "Prediction", "Problem",
    "cox_probe", "linear_labels", "linear_probe", "nearest_neighbors", "nearest_of_classes", "neighbor_labels",
    "neighbor_mean", "ridge_probe",
]  # fmt: skip
