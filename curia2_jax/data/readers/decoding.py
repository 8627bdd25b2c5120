"""Compressed pixels -> numbers, in a process of its own.

Decoders are C libraries. Damaged pixels may end the process that they run in, or keep them from returning
(team-charls/charls#334): then it is not that of the reader. What the process answers is read as numbers and text.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import math
import pathlib
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pydicom

from curia2_jax.data.readers.faults import MachineFault
from curia2_jax.data.readers.volume import Refusal

# The time for a file. The slowest codec at hand, JPEG 2000, takes 0.1 s for a million pixels.
SECONDS, SECONDS_PER_MILLION = 30.0, 2.0
_SCRIPT = pathlib.Path(__file__).with_name("decoder.py")


class Decoder:
    """The process, which starts when it is first needed, again after its end, and ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._ended(self._process)

    def decode(self, dataset: pydicom.Dataset, plugin: str) -> np.ndarray:
        """The `pixel_array` of a dataset by one of pydicom's plugins.

        Raises:
          Refusal: the decoder finds fault with the pixels, ends its process, or does not return in time.
          MachineFault: the process does not start.
        """
        pixels = math.prod(int(dataset.get(tag) or 1) for tag in ("Rows", "Columns", "NumberOfFrames"))
        seconds = SECONDS + SECONDS_PER_MILLION * pixels / 1e6
        with self._lock:
            process = self._started()
            try:
                head, out = _asked(process, (dataset, plugin, seconds))
            except (EOFError, OSError, ValueError):
                ended = -self._ended(process)
                what = f"did not return in {seconds:.0f} s" if ended == signal.SIGALRM else "ended over its pixels"
                raise Refusal("reader_failed", f"the decoder {what}, signal {ended}") from None
        if out is None:
            raise Refusal("corrupt", head["error"])
        return out

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -P: without the folder of the script, in which modules are called like those of libraries.
            command, pipe = [sys.executable, "-P", str(_SCRIPT)], subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            assert self._process.stdout is not None
            with contextlib.suppress(OSError):  # a system that allows no more gives less
                fcntl.fcntl(self._process.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)
            if self._process.stdout.readline() != b"ready\n":
                code = self._ended(self._process)
                raise MachineFault(errno.ECHILD, f"does not start, code {code}", " ".join(command))
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Ends the process; returns its code, negative for a signal."""
        self._process = None
        process.kill()
        with contextlib.suppress(OSError), process:  # what was not written cannot be
            pass
        return process.wait()


def _asked(process: subprocess.Popen[bytes], question: tuple) -> tuple[dict, np.ndarray | None]:
    """Head of the answer, and the numbers; None where there are none.

    Raises:
      EOFError, OSError, ValueError: there is no answer.
    """
    assert process.stdin is not None and process.stdout is not None
    pickle.dump(question, process.stdin)
    process.stdin.flush()
    head = json.loads(process.stdout.readline())
    if "error" in head:
        return head, None
    out = np.empty(head["shape"], head["dtype"])
    if process.stdout.readinto(out.data.cast("B")) < out.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return head, out


decoder = Decoder()
