"""Google's notice that a spot or preemptible machine (Compute Engine, Cloud TPU) is taken back, 30 s before.

Pods of GKE get SIGTERM, as SLURM's tasks do; a plain machine is only told by its metadata server.
"""

import pathlib
import threading
import time
import urllib.request
from collections.abc import Callable

_MACHINE = pathlib.Path("/sys/class/dmi/id/product_name")
# The answer comes when it changes, or after a minute.
_URL = "http://metadata.google.internal/computeMetadata/v1/instance/preempted?wait_for_change=true&timeout_sec=60"


def watch(stop: Callable[[str], None]) -> None:
    """Calls `stop` from a thread, once; does nothing on other machines."""
    try:
        google = "Google" in _MACHINE.read_text()
    except OSError:
        google = False
    if google:
        threading.Thread(target=_listen, args=[stop], daemon=True, name="preemption").start()


def _listen(stop: Callable[[str], None]) -> None:
    request = urllib.request.Request(_URL, headers={"Metadata-Flavor": "Google"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                if answer.read().strip() == b"TRUE":
                    return stop("Google Cloud takes this machine back")
            time.sleep(1)
        except OSError:
            time.sleep(10)
