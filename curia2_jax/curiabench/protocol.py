"""What is compared, by what, and which score counts: rows, heads, metrics and the primary score, each said once.

Evaluation, report, sweeps and demo read these lists. Another kind of task is a row of `benchmark_schema.KINDS`, its
heads (a function `Problem` -> `Prediction` each), its scores (a function of targets, outputs, groups and weights each),
and a row of `SCORINGS` here.
"""

from collections.abc import Iterable
from typing import NamedTuple

from curia2_jax.curiabench import heads, label_scores, map_scores, scores
from curia2_jax.curiabench.registration import protocol as registration
from curia2_jax.curiabench.results import Results
from curia2_jax.curiabench.scoring import Head, Metric, Primary, Scoring
from curia2_jax.data.ingest import benchmark_schema


class Row(NamedTuple):
    """Features that are scored: `name` in files, `title` in a table, `phrase` in a sentence, `short` in a cell."""

    name: str
    title: str
    phrase: str
    short: str
    has_direction: bool = True  # see heads.Problem


TRAINED = Row("trained", "Trained backbone", "the trained backbone", "trained")
RANDOM = Row("random", "Same backbone, random weights", "the same backbone with random weights", "random")
# Of tasks without masks: the class token of random weights is nearly a constant, the mean of the patches is not.
TRAINED_PATCHES = Row("trained-patches", "Trained, mean of patches", "the mean of its patch tokens", "trained patches")
RANDOM_PATCHES = Row(
    "random-patches", "Random weights, mean of patches", "the mean of random patch tokens", "random patches"
)
PIXELS_LINEAR = Row(
    "pixels-linear", "Linear projection of pixels", "a linear projection of each patch", "projected pixels"
)
# Of tasks with masks.
MASK_ONLY = Row("mask-only", "Mask alone, no pixel", "place and shape of the mask", "mask", has_direction=False)
PIXELS = Row("pixels", "Raw pixels", "raw pixels", "raw pixels", has_direction=False)
# Of registration.
IDENTITY = Row("identity", "No displacement", "volumes as they lie", "no displacement")
# Those that a task has.
ROWS = (TRAINED, TRAINED_PATCHES, RANDOM, RANDOM_PATCHES, PIXELS_LINEAR, MASK_ONLY, PIXELS, IDENTITY)
JUDGED_BY = (
    PIXELS,
    IDENTITY,
    PIXELS_LINEAR,
    RANDOM,
)  # what the trained backbone has to beat, in the order of the verdict
KNOWN = {row.name for row in ROWS}


def rows_of(names: Iterable[str]) -> list[Row]:
    """The rows with these names: those of every report, then other people's models."""
    names = list(names)
    return [row for row in ROWS if row.name in names] + [other(name) for name in names if name not in KNOWN]


def other(name: str) -> Row:
    """The row of another model, which is called what it is called."""
    return Row(name, name, name, name)


LINEAR = Head(
    "linear",
    "Linear probe",
    "linear probe",
    "The linear probe is a multinomial logistic regression on standardized features, its regularization chosen by "
    "cross-validation over training patients.",
    heads.linear_probe,
)
KNN = Head(
    "knn",
    "k nearest neighbors",
    "kNN",
    f"The neighbors are {heads.NEIGHBORS}, compared by cosine and weighted by exp(similarity / {heads.TEMPERATURE}); "
    "raw pixels, which have no direction, are standardized and compared by distance.",
    heads.nearest_neighbors,
)
ACCURACY = Metric(
    "accuracy",
    "accuracy",
    "Accuracy is the share of samples that are right.",
    scores.accuracy,
    in_brief=False,
    parts=scores.accuracy_parts,
)
BALANCED_ACCURACY = Metric(
    "balanced_accuracy",
    "balanced accuracy",
    "Balanced accuracy is the mean recall of the classes.",
    scores.balanced_accuracy,
    parts=scores.recalls,
)
AUROC = Metric(
    "auroc",
    "AUROC",
    "AUROC is one class against the rest, averaged over classes.",
    scores.auroc,
    parts=scores.areas,
)
PRIMARY = Primary(LINEAR, BALANCED_ACCURACY)

RIDGE = Head(
    "ridge",
    "Ridge regression",
    "ridge",
    "Ridge regression on standardized features, its strength chosen on val, or else by cross-validation over training "
    "patients.",
    heads.ridge_probe,
)
KNN_MEAN = Head(
    "knn",
    "k nearest neighbors",
    "kNN",
    f"The mean of {heads.NEIGHBORS} neighbors, compared by cosine and weighted by exp(similarity / "
    f"{heads.TEMPERATURE}).",
    heads.neighbor_mean,
)
R_SQUARED = Metric("r2", "R squared", "R squared is the share of the variance that is explained.", scores.explained)
COX = Head(
    "cox",
    "Cox regression",
    "Cox",
    "Cox regression on standardized features with a ridge penalty, chosen on val, or else by cross-validation over "
    "training patients.",
    heads.cox_probe,
)
CONCORDANCE = Metric(
    "concordance",
    "concordance",
    "Concordance is Harrell's C: the share of pairs of patients in which the one who died first has the larger risk.",
    scores.concordance,
    parts=scores.concordance_parts,
)
NEAREST = Head(
    "nearest",
    "Retrieval",
    "retrieval",
    "Retrieval ranks the training samples by cosine; nothing is fitted.",
    heads.nearest_of_classes,
)
RECALLS = tuple(
    Metric(
        f"recall_at_{depth}",
        f"recall@{depth}",
        f"Recall@{depth} is the share of samples with one of their class among the {depth} most similar.",
        scores.recall_within(depth),
    )
    for depth in heads.DEPTHS
)

LINEAR_LABELS = Head(
    "linear",
    "Linear probe",
    "linear probe",
    "The linear probe is a logistic regression for every label, each with a regularization of its own.",
    heads.linear_labels,
)
KNN_LABELS = Head(
    "knn", "k nearest neighbors", "kNN", f"The neighbors are {heads.NEIGHBORS}, asked label by label.",
    heads.neighbor_labels,
)  # fmt: skip
LABEL_AUROC = Metric(
    "auroc",
    "AUROC",
    "AUROC is of every label, averaged over labels; what is unknown does not count.",
    label_scores.auroc,
    parts=label_scores.auroc_parts,
)
AVERAGE_PRECISION = Metric(
    "average_precision",
    "average precision",
    "Average precision is of every label, averaged over labels.",
    label_scores.average_precision,
    parts=label_scores.average_precision_parts,
)
DENSE = Head(
    "dense",
    "Linear on patches",
    "linear",
    "A linear layer on patch tokens, fitted to the share of each label in each patch; its logits are brought to the "
    "pixels bilinearly.",
    None,
)
DENSE_TWICE = Head(
    "dense-2x", "Linear on patches, input at 2x", "linear 2x", "The same with the input at twice the size.", None
)
DICE = Metric(
    "dice",
    "Dice",
    "Dice is over all slices of a patient, the mean over patients who have the structure and over structures.",
    map_scores.dice,
    parts=map_scores.dice_parts,
)
SURFACE_DICE = Metric(
    "surface_dice",
    "surface Dice",
    "Surface Dice is the share of both contours within 2 mm of the other, or a pixel where no spacing is known.",
    map_scores.surface_dice,
    parts=map_scores.surface_dice_parts,
)
MINUS_HD95 = Metric(
    "minus_hd95",
    "minus HD95",
    "HD95 is the 95th percentile of the distances between contours, in mm, or in pixels where no spacing is known; a "
    "structure that is not found is as far as the diagonal of the slice. Its sign is turned: larger is better.",
    map_scores.minus_hd95,
    in_brief=False,
)

SCORINGS = (
    Scoring(
        benchmark_schema.CLASSIFICATION.name,
        heads=(LINEAR, KNN),
        metrics=(ACCURACY, BALANCED_ACCURACY, AUROC),
        primary=PRIMARY,
        settings={  # spelled as in the first reports
            "neighbors": heads.NEIGHBORS,
            "temperature": heads.TEMPERATURE,
            "regularization": list(heads.REGULARIZATION),
        },
    ),
    Scoring(
        benchmark_schema.REGRESSION.name,
        heads=(RIDGE, KNN_MEAN),
        metrics=(R_SQUARED,),
        primary=Primary(RIDGE, R_SQUARED),
        settings={"strengths": list(heads.RIDGE), "neighbors": heads.NEIGHBORS, "temperature": heads.TEMPERATURE},
    ),
    Scoring(
        benchmark_schema.SURVIVAL.name,
        heads=(COX,),
        metrics=(CONCORDANCE,),
        primary=Primary(COX, CONCORDANCE),
        settings={"penalties": list(heads.PENALTIES)},
    ),
    Scoring(
        benchmark_schema.RETRIEVAL.name,
        heads=(NEAREST,),
        metrics=RECALLS,
        primary=Primary(NEAREST, RECALLS[0]),
        settings={"depths": list(heads.DEPTHS)},
    ),
    Scoring(
        benchmark_schema.MULTI_LABEL.name,
        heads=(LINEAR_LABELS, KNN_LABELS),
        metrics=(LABEL_AUROC, AVERAGE_PRECISION),
        primary=Primary(LINEAR_LABELS, LABEL_AUROC),
        settings={"regularization": list(heads.REGULARIZATION), "neighbors": heads.NEIGHBORS},
    ),
    Scoring(
        benchmark_schema.SEGMENTATION.name,
        heads=(DENSE, DENSE_TWICE),
        metrics=(DICE, SURFACE_DICE, MINUS_HD95),
        primary=Primary(DENSE, DICE),
        settings={"strengths": list(heads.SHARE_STRENGTHS)},
    ),
    *registration.SCORINGS,
)


def scoring_of(kind: str) -> Scoring:
    """The row of `SCORINGS` for a kind of task."""
    return next(scoring for scoring in SCORINGS if scoring.kind == kind)


def scoring_behind(results: Results) -> Scoring:
    """How a report was made; the first ones do not say so and are of classification."""
    return scoring_of(results["settings"].get("kind", benchmark_schema.CLASSIFICATION.name))
