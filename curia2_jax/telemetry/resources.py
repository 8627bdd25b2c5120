"""What a process holds of its machine: looked at for every row of the metrics, so that what leaks is seen growing."""

import os

NAMES = ("rss_bytes", "open_files", "threads", "shm_bytes")


def usage() -> dict[str, float]:
    """`rss_bytes` in memory, `open_files`, `threads` of this process, not of the loader's processes; `shm_bytes` in
    /dev/shm, of all processes. Nothing where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        shared = os.statvfs("/dev/shm")
        values = (
            rss,
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            (shared.f_blocks - shared.f_bfree) * shared.f_frsize,
        )
    except OSError:
        return {}
    return dict(zip(NAMES, map(float, values), strict=True))
