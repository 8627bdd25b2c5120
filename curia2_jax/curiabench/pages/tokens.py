"""Patch tokens of test slices as colors, beside the slice and the labels that are known of it."""

import colorsys
import copy
from typing import NamedTuple

import numpy as np
import torch

from curia2_jax.curiabench import features
from curia2_jax.curiabench.model import Backbone, Model
from curia2_jax.curiabench.pictures import middle, png, size_of, windowed
from curia2_jax.curiabench.splits import Split, read_labels, read_sample
from curia2_jax.data.ingest import foreground

FINER = 2  # times the resolution of training: a patch is half as wide


class SlicePicture(NamedTuple):
    """One slice of the test split: the slice, its labels ("" without masks), its tokens with trained and with random
    weights, and the numbers of the classes that are labelled."""

    slice: str
    labels: str
    trained: str
    random: str
    classes: tuple[int, ...] = ()


def token_pictures(
    split: Split, model: Model, slices: np.ndarray, labelled: bool, count: int = 6
) -> list[SlicePicture]:
    """Pictures of `count` slices of a split; `slices` (n,) says which samples share an image, `labelled` whether masks
    have classes.

    Colors are the first three principal components of the interior patches (DINOv2, figure 1, where the background is
    left out; here the rim of the body too, which would be all of the first component), over all slices together, so
    that one color means one thing. The image is given to the backbone at twice the resolution of training.
    """
    chosen = _chosen(slices, split.patients, count)
    read = [middle(*read_sample(split, index)) for index in chosen]
    twice = copy.copy(model.processor)
    twice.crop_size = FINER * model.processor.crop_size
    modalities = split.modalities[chosen]
    pixels = [features.to_pixels(twice, image, one) for (image, _), one in zip(read, modalities, strict=True)]
    side, patch = pixels[0].shape[-1], model.config.patch_size
    inside = np.stack([interior(image, one, side, patch) for (image, _), one in zip(read, modalities, strict=True)])
    trained = principal_colors(_tokens(model.trained, pixels), inside)
    random = principal_colors(_tokens(model.randoms[0], pixels), inside)  # which lets the trained one go
    out = []
    for i, index in enumerate(chosen):
        gray, size = windowed(read[i][0], modalities[i]), size_of(read[i][0].shape)
        labels = _labels(split, slices, index) if labelled else {}
        shown = png(_label_map(labels, gray), size) if labels else ""
        with_weights, without = png(trained[i], size), png(random[i], size)
        out.append(SlicePicture(png(gray, size), shown, with_weights, without, tuple(sorted(labels))))
    return out


def _chosen(slices: np.ndarray, patients: np.ndarray, count: int) -> np.ndarray:
    """First samples of the slices with the most samples on them, one slice a patient while there are patients, these
    spread over the split."""
    _, first, samples = np.unique(slices, return_index=True, return_counts=True)
    order = np.lexsort((first, -samples))
    rank: dict[str, int] = {}
    ranked = []
    for place in order.tolist():
        patient = patients[first[place]]
        rank[patient] = rank.get(patient, -1) + 1
        ranked.append((rank[patient], int(first[place])))
    best = sorted(one for one in ranked if one[0] == 0)
    if len(best) > count:
        return np.array([best[i][1] for i in np.linspace(0, len(best) - 1, count).round().astype(int)])
    return np.sort([index for _, index in sorted(ranked)[:count]])


def _tokens(backbone: Backbone, pixels: list[torch.Tensor]) -> np.ndarray:
    """(n, g, g, D) of n tensors (1, 1, R, R), one at a time: at twice the side attention needs 16 times the memory."""
    return np.concatenate([features.tokens(backbone, one)[1].numpy() for one in pixels])


def interior(image: np.ndarray, modality: str, side: int, patch_size: int) -> np.ndarray:
    """Patches (g, g) bool of a slice (H, W), brought to `side` x `side` pixels, that lie in the body with every pixel.

    The body is that of `launch/ingest.py`, lungs and bowel filled. One that is too thin for whole patches is shown by
    all that touch it, and a slice without one by all patches.
    """
    threshold = foreground.CT_THRESHOLD if modality == "CT" else foreground.mr_threshold(image.ravel())
    body = foreground.body(image[None], threshold, couch=modality == "CT")
    inside = torch.nn.functional.interpolate(torch.from_numpy(body[None].astype(np.float32)), (side, side))
    share = torch.nn.functional.avg_pool2d(inside, patch_size)[0, 0].numpy()
    wholly = share > 1 - 1e-4
    return wholly if wholly.any() else share > 0 if share.any() else np.ones(share.shape, bool)


def principal_colors(tokens: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """RGB (n, g, g, 3) uint8 of tokens (n, g, g, D): three principal components of `chosen` patches (n, g, g) bool; the
    others are black.

    Each component is stretched from its 2nd to its 98th percentile; its sign makes the largest loading positive. Not
    scikit-learn's PCA, which refuses fewer points than components: a slice with one bright patch has a picture too.
    """
    points = tokens[chosen].astype(np.float64)
    centered = points - points.mean(0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    axes = vectors[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    values = centered @ axes
    low, high = np.percentile(values, [2, 98], axis=0)
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.zeros((*chosen.shape, 3), np.uint8)
    colors[chosen] = np.rint(25 + 230 * scaled)
    return colors


def _labels(split: Split, slices: np.ndarray, index: int) -> dict[int, np.ndarray]:
    """Masks (H, W) bool of the classes that the split has on the slice of a sample, by their numbers."""
    if split.labels:
        labels = read_labels(split, index)[1]
        return {number: labels == number for number in np.unique(labels[labels > 0]).tolist()}
    found: dict[int, np.ndarray] = {}
    for sample in np.flatnonzero(slices == slices[index]).tolist():
        image, mask = read_sample(split, sample)
        if image.ndim == 2 or sample == index:  # the middle of another volume is another slice
            number, (_, inside) = int(split.targets[sample]), middle(image, mask)
            if inside is not None:
                found[number] = found.get(number, False) | inside
    return found


def _label_map(labels: dict[int, np.ndarray], gray: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: every class in its color over the darkened slice."""
    shown = np.stack([gray // 3] * 3, axis=-1)
    for number, mask in labels.items():
        shown[mask] = color_of(number)
    return shown


def color_of(number: int) -> tuple[int, int, int]:
    """RGB of a class: hues a golden section apart, so that neighbors differ, in three shades."""
    shade = number // 8 % 3
    rgb = colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.65, 0.4, 0.9)[shade], (0.95, 1.0, 0.7)[shade])
    return tuple(round(255 * one) for one in rgb)  # type: ignore[return-value]
