"""A small exported model and a small benchmark made of phantom studies, for the tests of the evaluation."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

from curia2_jax.data.readers import phantom
from curia2_jax.export import processor

FIELDS = [("filename", "U32"), ("target", "i8"), ("series_id", "U16"), ("patient_id", "U16"), ("modality", "U4")]


def write_model(folder: Path, resolution: int = 32, patch: int = 8, registers: int = 0) -> Path:
    """A random DINOv2 of width 24 and depth 2, with the image processor that is exported beside the weights."""
    settings = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": resolution,
        "patch_size": patch, "num_channels": 1, "use_swiglu_ffn": True, "layerscale_value": 1.0,
    }  # fmt: skip
    torch.manual_seed(7)
    transformers.utils.logging.disable_progress_bar()
    if registers:
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **settings)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    model.save_pretrained(folder)
    told = {"resize": {"size": resolution}, "clip": {"CT": {"min": -1000, "max": None}}, "z_score": {"eps": 1e-6}}
    processor.write(folder, told)
    return folder


def write_task(folder: Path, samples: dict[str, list], classes: dict[int, str], mask: bool = True) -> Path:
    """samples: {split: [(image, mask or None, target, patient, modality), ...]}."""
    for split, rows in samples.items():
        images = folder / split / "images"
        images.mkdir(parents=True)
        table = []
        for number, (image, under, target, patient, modality) in enumerate(rows):
            np.save(images / f"sample_{number}.npy", np.asarray(image, np.float32))
            if mask:
                np.save(images / f"sample_{number}.mask.npy", np.asarray(under, np.uint8))
            table.append((f"sample_{number}", target, patient, patient, modality))
        np.save(folder / split / "extra_data.npy", np.array(table, dtype=FIELDS))
    description = {"name": folder.name, "classes": {str(k): v for k, v in classes.items()}, "kind": "classification"}
    (folder / "task.json").write_text(json.dumps(description | {"mask": mask, "modality": ""}))
    return folder


def organ_samples(numbers: range, size: int = 48) -> list:
    """Every organ of at least 10 pixels on every third slice of phantom studies, oriented PL."""
    samples = []
    for number in numbers:
        study = phantom.make_study(5, number, size)
        voxels, labels = (array[::-1, ::-1].transpose(1, 0, 2) for array in (study.voxels, study.labels))
        for z in range(0, voxels.shape[2], 3):
            for index in phantom.LABELS:
                mask = labels[..., z] == index
                if mask.sum() >= 10:
                    samples.append((voxels[..., z], mask, index, f"patient {number}", study.modality))
    return samples


def write_segmentation(folder: Path, spacing: tuple[float, float] | None = None) -> Path:
    """Slices of phantom CT with their label maps: four patients to train on, two to test on; lungs and liver."""
    asked = {label: phantom.LABELS[label] for label in (1, 2, 5)}
    fields = [("filename", "U32"), ("patient_id", "U16"), *([("spacing", "f4", (2,))] if spacing else [])]
    for split, numbers in {"train": range(0, 8, 2), "test": range(8, 12, 2)}.items():
        images, table = folder / split / "images", []
        images.mkdir(parents=True)
        for number in numbers:
            study = phantom.make_study(5, number, 48)
            voxels, labels = (array[::-1, ::-1].transpose(1, 0, 2) for array in (study.voxels, study.labels))
            for z in range(15, voxels.shape[2], 5):
                name = f"p{number}_{z}"
                np.save(images / f"{name}.npy", voxels[..., z].astype(np.float32))
                one = np.where(np.isin(labels[..., z], list(asked)), labels[..., z], 0)
                np.save(images / f"{name}.mask.npy", one.astype(np.uint8))
                table.append((name, f"patient {number}", *([spacing] if spacing else [])))
        np.save(folder / split / "extra_data.npy", np.array(table, dtype=fields))
    classes = {str(k): v for k, v in asked.items()}
    told = {"name": folder.name, "kind": "segmentation", "classes": classes, "modality": "CT"}
    (folder / "task.json").write_text(json.dumps(told))
    return folder


def write_benchmark(folder: Path) -> Path:
    """Tasks `organs-ct` and `organs-mr`: six patients each to train on, three to test on."""
    for name, parity in (("organs-ct", 0), ("organs-mr", 1)):
        samples = {"train": organ_samples(range(parity, 12, 2)), "test": organ_samples(range(12 + parity, 18, 2))}
        write_task(folder / name, samples, phantom.LABELS)
    return folder
