"""Decoders that do not return, that end their process, or that are asked too much."""

import os
import signal
import time

import imagecodecs
import numpy as np
import pytest
from pydicom import uid

from curia2_jax.data.readers import codestreams, decoding, dicom
from curia2_jax.data.readers.volume import Refusal
from curia2_jax.errors import UserError
from tests.data.ingest.running import quarantine, run
from tests.data.readers.test_dicom import encoded
from tests.data.readers.test_dicom_pixels import packed
from tests.data.small_studies import body, dicom_slices, save_dicom, write_nifti

VOXELS = body((3, 40, 48))


@pytest.fixture
def endless(monkeypatch):
    """A JPEG-LS stream without an end, from which CharLS does not return; the check that would see it is off."""
    monkeypatch.setattr(codestreams, "check", lambda *_: None)
    monkeypatch.setattr(decoding, "SECONDS", 1.0)
    stream = imagecodecs.jpegls_encode(VOXELS[0].view(np.uint16))
    return stream[: len(stream) // 2]


def pid() -> int:
    return decoding.decoder._process.pid


def test_a_decoder_that_does_not_return_is_ended(tmp_path, endless):
    """In time, and the next file is read."""
    slices = dicom_slices(VOXELS)
    hanging = save_dicom(tmp_path / "a", [packed(slices[0], endless, uid.JPEGLSLossless)])
    start = time.monotonic()
    with pytest.raises(Refusal, match=r"reader_failed: the decoder did not return in 1 s"):
        dicom.read(hanging)
    assert 0.9 < time.monotonic() - start < 10
    good = save_dicom(tmp_path / "b", [encoded(ds, uid.JPEGLSLossless) for ds in slices])
    np.testing.assert_array_equal(dicom.read(good).voxels, VOXELS)


def test_an_ingest_goes_on_after_it(tmp_path, endless):
    """The file is listed by its name, all others are read."""
    (first, *_) = dicom_slices(VOXELS)
    save_dicom(tmp_path / "in" / "hangs", [packed(first, endless, uid.JPEGLSLossless)])
    write_nifti(tmp_path / "in" / "b.nii.gz", body((4, 40, 44)))
    save_dicom(tmp_path / "in" / "z", [encoded(ds, uid.JPEGLosslessSV1) for ds in dicom_slices(body((3, 40, 44)))])
    assert run(tmp_path / "out", tmp_path / "in").contract["series"] == 2
    assert quarantine(tmp_path / "out") == {"hangs/000.dcm": "reader_failed"}


@pytest.mark.parametrize(
    "syntax",
    [uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.HTJ2KLossless],
)
def test_every_codec_runs_in_the_other_process(tmp_path, syntax):
    """Which takes them all; when it is killed, there is a new one for the next file."""
    paths = save_dicom(tmp_path, [encoded(ds, syntax) for ds in dicom_slices(VOXELS)])
    np.testing.assert_array_equal(dicom.read(paths).voxels, VOXELS)
    before = pid()
    assert before != os.getpid()
    os.kill(before, signal.SIGKILL)
    with pytest.raises(Refusal, match="reader_failed: the decoder ended over its pixels, signal 9"):
        dicom.read(paths)
    np.testing.assert_array_equal(dicom.read(paths).voxels, VOXELS)
    assert pid() != before


def test_a_process_that_does_not_start_is_no_fault_of_a_file(monkeypatch, tmp_path):
    """It stops the ingest with the command that shows why."""
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(decoding, "_SCRIPT", tmp_path / "broken.py")
    monkeypatch.setattr(decoding, "decoder", decoding.Decoder())
    save_dicom(tmp_path / "in", [encoded(ds, uid.RLELossless) for ds in dicom_slices(VOXELS)])
    with pytest.raises(UserError, match=r"broken.py: does not start, code 3; run it to see why, then call again"):
        run(tmp_path / "out", tmp_path / "in")
