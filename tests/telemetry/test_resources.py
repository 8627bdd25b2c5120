"""What a process holds is counted as the system counts it."""

import pathlib
import re
import threading

from curia2_jax.telemetry.resources import NAMES, usage


def test_a_file_a_thread_and_memory_more_are_seen(tmp_path):
    before = usage()
    said = re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert tuple(before) == NAMES and abs(int(said[1]) * 1024 - before["rss_bytes"]) < 8 << 20
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with (tmp_path / "a").open("w"):
        held = b"x" * (64 << 20)
        after = usage()
    done.set()
    thread.join()
    assert after["open_files"] == before["open_files"] + 1
    assert after["threads"] == before["threads"] + 1
    assert after["rss_bytes"] >= before["rss_bytes"] + 0.9 * len(held)
