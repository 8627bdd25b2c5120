"""Small studies built after public bug reports: each is accepted with the right voxels, or refused for its reason."""

import collections
import functools
import importlib.util
import os
import pathlib
import resource

import numpy as np
import pytest

from curia2_jax.data.corpus.corpus import Corpus
from curia2_jax.errors import UserError
from tests.data.ingest.running import corrections, quarantine, run

FOLDER = (
    pathlib.Path(os.environ.get("CURIA_SHARED_DATA", pathlib.Path(__file__).parents[4] / "shared" / "data"))
    / "archive_cases"
)

# What the file of the case calls right: (slices, distance in mm, truth, options), or the reasons of a refusal.
ACCEPTED = {
    "D01": (12, 3, "ct", {}),
    "D02": (12, 3, "ct", {}),
    "D04": (6, 6, None, {}),
    "D11": (6, 6, None, {}),
    "D15": (12, 3, "ct", {}),
    "D16": (12, 3, "ct", {}),
    "D17": (12, 0.625, "ct", {}),
    "D18": (12, 3, "ct", {}),
    "D38": (12, 3, "ct", {}),
    "D42": (12, 3, "ct above air", {}),
    "D43": (12, 3, "2.5 mr", {}),
    "M01": (12, 3, "ct", {}),
    "N01": (12, 3, "ct", {}),
    "N04": (12, 3, "ct", {}),
    "N05": (12, 3, "ct", {}),
    "N07": (12, 3, "ct", {}),
    "N09c": (12, 3, "mr", {}),
    "N09f": (12, 3, "mr", {}),
    "N10": (12, 3, "ct", {}),
    "N11": (12, 3, "ct", {}),
    "N20": (12, 3, "ct above air", {}),
    "P02": (12, 3, None, {}),
    "P03": (12, 3, None, {}),
    "P04": (12, 3, "ct", {}),
    "P08": (12, 3, "mr", {}),
    "P11": (12, 3, "ct", {}),
    "P12": (12, 3, "ct", {}),
    "P15": (12, 3, "ct", {}),
    "P19": (12, 3, "ct", {}),
    "P20": (12, 3, None, {}),
    "P30": (12, 3, "ct", {}),
    "P36": (12, 3, "ct", {}),
    "R03": (12, 3, "ct", {}),
    "R04": (12, 3, "ct", {}),
    "R06": (12, 3, "ct", {}),
    "R07": (12, 3, "ct", {}),
    "R11": (12, 3, "ct", {}),
}
REFUSED = {
    "D06": ({"irregular_geometry"}, {}),
    "D19": ({"irregular_geometry"}, {}),
    "D41": ({"no_geometry"}, {}),
    "D47": ({"irregular_geometry"}, {}),
    "D48": ({"irregular_geometry"}, {}),
    "D49": ({"irregular_geometry"}, {}),
    "F17": ({"corrupt"}, {}),
    "M03": ({"corrupt"}, {}),
    "M04": ({"corrupt"}, {}),
    "M05": ({"no_geometry"}, {}),
    "M14": ({"unsafe_archive"}, {}),
    "N02": ({"corrupt"}, {}),
    "N14": ({"unknown_modality"}, {}),
    "N15": ({"not_hounsfield"}, {"modality": "CT"}),
    "N16": ({"unknown_modality"}, {}),
    "N21": ({"unsupported_dimensions"}, {}),
    "P14": ({"lossy_compression"}, {}),
    "P42": ({"corrupt"}, {}),
    "R01": ({"no_geometry"}, {}),
    "R02": ({"no_geometry"}, {}),
    "R09": ({"unsupported_pixel_type"}, {}),
    "R12": ({"corrupt"}, {}),
}
# Of the walk, of patients and of labels: (series, patients, label maps, {reason: files refused}, options).
# An option that ends in .csv is a file of the case.
ARCHIVES = {
    "F03": (1, 1, 0, {}, {}),
    "F09b": (1, 1, 0, {}, {}),
    "F09c": (1, 1, 0, {}, {}),
    "F09d": (1, 1, 0, {"other_file": 1}, {}),
    "F11": (3, 1, 0, {}, {}),
    "F12": (1, 1, 0, {}, {}),
    "F13": (2, 2, 0, {}, {}),
    "F13b": (3, 1, 0, {}, {}),
    "F14": (1, 1, 0, {"other_file": 2, "not_an_image": 1}, {}),
    "F18": (1, 1, 0, {}, {}),
    "F21": (1, 1, 0, {"corrupt": 1}, {}),
    "F22": (1, 1, 0, {"corrupt": 12}, {}),
    "L02": (1, 1, 1, {}, {}),
    "L06": (1, 1, 1, {}, {"labels": "labelsTr/*"}),
    "L11": (2, 1, 1, {"other_file": 1}, {"patient_regex": r"sub-(\d+)"}),
    "L11b": (2, 1, 1, {"other_file": 1}, {}),
    "L13": (1, 1, 1, {"other_file": 1}, {"labels": "l.csv"}),
    "L18": (2, 1, 0, {"other_file": 1}, {"patients": "p.csv"}),
}
NOTHING = {
    "F09": (r"no slice was accepted \(other_file 1\)", {}),
    "F10c": (r"no slice was accepted \(other_file 12\)", {}),
    "L04": (r"no slice was accepted \(label_map 1\)", {}),
    "L04c": (r"no slice was accepted \(label_map 1\)", {}),
    "L16": ("line 3 has no label; write one", {"labels": "l.csv"}),
    "L17": ("line 2 has no patient; write one", {"patients": "p.csv"}),
}


@functools.cache
def truth() -> dict[str, np.ndarray]:
    spec = importlib.util.spec_from_file_location("truth", FOLDER / "truth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ct, mr = module.ct().astype(float), module.mr().astype(float)
    return {"ct": ct, "mr": mr, "2.5 mr": 2.5 * mr, "ct above air": np.maximum(ct, -1000)}


def case(name: str) -> pathlib.Path:
    for folder in (FOLDER / "wrong" / name, FOLDER / "right" / name):
        if folder.exists():
            return folder
    return pytest.skip(f"no case {name} below {FOLDER} (set CURIA_SHARED_DATA)")


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_right(tmp_path, name):
    """Slices, distance and numbers."""
    slices, distance, what, options = ACCEPTED[name]
    run(tmp_path / "c", case(name), **options)
    corpus = Corpus(tmp_path / "c")
    assert len(corpus) == slices
    np.testing.assert_allclose(corpus.column("spacing_z"), distance, rtol=0.01)
    if what:
        order = np.argsort(corpus.column("position_mm"))
        slope, intercept = corpus.column("slope"), corpus.column("intercept")
        found = np.stack([corpus.read(i) * slope[i] + intercept[i] for i in order])
        np.testing.assert_allclose(found, truth()[what], atol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_is_listed(tmp_path, name):
    """With its reason, in bounded memory."""
    reasons, options = REFUSED[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        run(tmp_path / "c", case(name), **options)
    assert set(quarantine(tmp_path / "c").values()) == reasons
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def with_files(folder: pathlib.Path, options: dict[str, str]) -> dict[str, str]:
    return {key: str(folder / value) if value.endswith(".csv") else value for key, value in options.items()}


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_file_of_an_archive_gets_its_verdict(tmp_path, name):
    """Series, patients and label maps are counted once, all else is listed."""
    series, patients, maps, refused, options = ARCHIVES[name]
    summary = run(tmp_path / "c", case(name), **with_files(case(name), options))
    contract = summary.contract
    assert (contract["series"], contract["patients"], summary.label_maps) == (series, patients, maps)
    assert collections.Counter(quarantine(tmp_path / "c").values()) == refused
    assert any("ANONYMOUS" in line for line in summary.warnings) == (name == "F13b")


@pytest.mark.parametrize("name", NOTHING)
def test_an_archive_of_nothing_is_told_in_one_line(tmp_path, name):
    """Whether it is the archive's fault or that of a table."""
    message, options = NOTHING[name]
    with pytest.raises(UserError, match=message):
        run(tmp_path / "c", case(name), **with_files(case(name), options))


def test_what_is_corrected_is_said(tmp_path):
    """In corrections.csv."""
    for name, what in (
        ("D02", "repeated_instances"), ("D11", "frame"), ("N18", "clipped"), ("N20", "ct_offset"), ("P04", "ct_offset"),
        ("P08", "monochrome1"), ("P34", "padding"),
    ):  # fmt: skip
        run(tmp_path / name, case(name))
        assert what in {found for _, found in corrections(tmp_path / name)}, name


def test_a_ct_without_air_is_read_when_the_user_says_so(tmp_path):
    """One that was cut off at a window is not."""
    run(tmp_path / "c", case("N16"), modality="CT")
    assert len(Corpus(tmp_path / "c")) == 12
    with pytest.raises(UserError, match="not_hounsfield 1"):
        run(tmp_path / "d", case("N14"), modality="CT")


def test_one_voxel_takes_no_steps_from_the_others(tmp_path):
    """It is clipped."""
    run(tmp_path / "c", case("N18"))
    corpus = Corpus(tmp_path / "c")
    order = np.argsort(corpus.column("position_mm"))
    slope, intercept = corpus.column("slope"), corpus.column("intercept")
    found = np.stack([corpus.read(i) * slope[i] + intercept[i] for i in order])
    apart = np.abs(found - truth()["mr"])
    assert np.sort(apart.ravel())[-2] < 1


def test_padding_by_range_is_air(tmp_path):
    """And nothing else changes."""
    run(tmp_path / "c", case("P34"))
    corpus = Corpus(tmp_path / "c")
    order = np.argsort(corpus.column("position_mm"))
    found = np.stack([corpus.read(i) for i in order]).astype(float)
    expected = truth()["ct"]
    assert np.all((found == expected) | (found == -1000)) and np.mean(found != expected) < 0.2


def test_four_volumes_of_one_series(tmp_path):
    """Two echoes, magnitude and phase: the first alone, or all."""
    run(tmp_path / "first", case("D22"))
    corpus = Corpus(tmp_path / "first")
    order = np.argsort(corpus.column("position_mm"))
    np.testing.assert_array_equal(np.stack([corpus.read(i) for i in order]), truth()["mr"])
    assert run(tmp_path / "all", case("D22"), every_frame=True).contract["series"] == 4


def test_damaged_files_of_a_fuzzer_are_corrupt(tmp_path):
    """Not a fault of a reader."""
    for path in sorted(case("fuzz").iterdir()):
        if path.suffix != ".md":
            with pytest.raises(UserError):
                run(tmp_path / path.name, path)
            assert set(quarantine(tmp_path / path.name).values()) == {"corrupt"}, path.name


def test_every_case_of_the_readers_is_in_a_table():
    """None is left out."""
    case("D01")
    names = {path.name for side in ("wrong", "right") for path in (FOLDER / side).iterdir() if path.is_dir()}
    single = {"D22", "N18", "P34", "fuzz", "L05", "P26"}  # tests of their own; the last two nobody can decide
    assert names - single == set(ACCEPTED) | set(REFUSED) | set(ARCHIVES) | set(NOTHING)
