"""How registration is scored: by label maps, or by landmarks alone. `curiabench/protocol.py` has the rows."""

from curia2_jax.curiabench.registration import adam, channels, grid, pair_scores, search
from curia2_jax.curiabench.scoring import Head, Metric, Primary, Scoring
from curia2_jax.data.ingest import benchmark_schema

CONVEX_ADAM = Head(
    "convex-adam",
    "Registration of features",
    "registration",
    "Nothing is fitted to other patients: principal components of the patch tokens of both volumes, in the body, are "
    "brought onto each other by a coupled convex search and Adam (ConvexAdam's scheme), and so are the pixels.",
    None,
)
DICE = Metric(
    "dice",
    "Dice",
    "Dice is of the moved and the fixed labels of a pair, the mean over pairs that have the structure and over "
    "structures.",
    pair_scores.dice,
    parts=pair_scores.dice_parts,
)
SURFACE_DICE = Metric(
    "surface_dice",
    "surface Dice",
    "Surface Dice is the share of both surfaces within 2 mm of the other, or a voxel where no spacing is known.",
    pair_scores.surface_dice,
    in_brief=False,
    parts=pair_scores.surface_dice_parts,
)
MINUS_HD95 = Metric(
    "minus_hd95",
    "minus HD95",
    "HD95 is the 95th percentile of the distances between surfaces, in mm, or in voxels where no spacing is known; its "
    "sign is turned: larger is better.",
    pair_scores.minus_hd95,
    in_brief=False,
)
MINUS_TRE = Metric(
    "minus_tre",
    "minus TRE",
    "TRE is the mean distance of landmarks, in mm, or in voxels where no spacing is known, its sign turned.",
    pair_scores.minus_tre,
    drawn=False,
)
MINUS_SD_LOG_J = Metric(
    "minus_sd_log_j",
    "minus SD log J",
    "SD log J is the standard deviation of the logarithm of the Jacobian determinant over the nodes of the field, 0 "
    "where nothing moves, its sign turned.",
    pair_scores.minus_sd_log_j,
    in_brief=False,
)
MINUS_FOLDED = Metric(
    "minus_folded",
    "minus folded",
    "Folded is the share of nodes whose determinant is not positive, its sign turned.",
    pair_scores.minus_folded,
    in_brief=False,
)
OF_FIELD = (MINUS_SD_LOG_J, MINUS_FOLDED)

HOW = (
    "The backbone is frozen, and nothing is learned from other patients. Each sample is a pair of volumes: patch "
    "tokens of every slice, after the final norm, in the body, are reduced to principal components of both volumes "
    "together; pixels are one such channel. Random weights are several draws, averaged; their spread is in no "
    "interval. A pair counts for the patients of both of its volumes."
)
CONSTANTS = {
    "channels": channels.CHANNELS,
    "nodes": grid.NODES,
    "search": {"half_width": search.HALF_WIDTH, "coupling": list(search.COUPLING), "rounds": search.ROUNDS},
    "adam": {"steps": adam.STEPS, "rate": adam.RATE, "smoothness": adam.SMOOTHNESS, "smoothings": adam.SMOOTHINGS},
}
SCORINGS = (
    Scoring(
        benchmark_schema.REGISTRATION.name,
        heads=(CONVEX_ADAM,),
        metrics=(DICE, SURFACE_DICE, MINUS_HD95, MINUS_TRE._replace(in_brief=False), *OF_FIELD),
        primary=Primary(CONVEX_ADAM, DICE),
        settings=CONSTANTS,
        how=HOW,
    ),
    Scoring(
        benchmark_schema.LANDMARKS.name,
        heads=(CONVEX_ADAM,),
        metrics=(MINUS_TRE, *OF_FIELD),
        primary=Primary(CONVEX_ADAM, MINUS_TRE),
        settings=CONSTANTS,
        how=HOW,
    ),
)
