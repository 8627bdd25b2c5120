"""Small corpora with the real writer, for tests of what reads them."""

import pathlib

import numpy as np

from curia2_jax.data.corpus import layout, records
from curia2_jax.data.ingest import parts, publish


def write_small_corpus(
    folder: pathlib.Path,
    *,
    series: int = 4,
    slices: int = 6,
    shape: tuple[int, int] = (64, 48),
    shards: int = 2,
    seed: int = 0,
    foreground: float = 0.5,
    codec: str = "htj2k",
) -> list[np.ndarray]:
    """Corpus of `series` x `slices` int16 slices, even series CT and odd ones MR, one patient per two series.

    Sides vary by up to 8 pixels from series to series. Returns the slices in the order of the index.
    """
    rng = np.random.default_rng(seed)
    (folder / layout.WORK).mkdir(parents=True)
    written = []
    for number, mine in enumerate(np.array_split(np.arange(series), shards)):
        with parts.Part(folder / layout.WORK, number, codec) as part:
            for s in mine.tolist():
                part.begin_series()
                height, width = shape[0] + s % 3 * 4, shape[1] + s % 2 * 8
                modality = "CT" if s % 2 == 0 else "MR"
                for z in range(slices):
                    pixels = rng.integers(-1024, 1024, (height, width)).astype(np.int16)
                    part.add(pixels, row(f"series{s}", f"patient{s // 2}", modality, z, pixels, foreground))
                    written.append(pixels)
                part.end_series(f"series{s}", False, f"/source/{s}")
            part.finish({})
    record = {"version": records.CODECS[codec].version, "codec": records.CODECS[codec].name, "pixels": "int16"}
    publish.publish(folder, shards, (), {"code_version": "test", "record": record, "options": {}})
    return written


def row(series: str, patient: str, modality: str, z: int, pixels: np.ndarray, foreground: float) -> dict:
    """Index row of a slice with its anatomy in the middle."""
    height, width = pixels.shape
    return {
        "study": f"study-{patient}",
        "series": series,
        "patient": patient,
        "modality": modality,
        "plane": "axial",
        "position": float(z),
        "position_mm": 2.0 * z,
        "spacing_y": 0.8,
        "spacing_x": 0.8,
        "spacing_z": 2.0,
        "obliquity": 0.0,
        "slope": 1.0,
        "intercept": 0.0,
        "foreground": foreground,
        "anatomy_y": height / 2,
        "anatomy_x": width / 2,
        "anatomy_std_y": height / 6,
        "anatomy_std_x": width / 6,
        "label": "",
    }
