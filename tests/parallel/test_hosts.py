"""Two hosts that share a folder and a wire, as namespaces of this machine: what loopback cannot show."""

import os
import shutil
import subprocess
import time

import pytest

from curia2_jax.training import lock
from tests.parallel.test_processes import LONG, Host, Job, config_file, stopped_together

pytestmark = pytest.mark.soak
NUMBERS = (1, 2)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path):
    """Two, with names, addresses and network devices of their own."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "unshare", "hostname", "mount"))):
        pytest.skip("namespaces take root, iproute2 and util-linux")
    spaces = [f"curia{number}" for number in NUMBERS]
    try:
        for space in spaces:
            ip("netns", "add", space)
        ip("link", "add", "wire", "netns", spaces[0], "type", "veth", "peer", "name", "wire", "netns", spaces[1])
        for number, space in zip(NUMBERS, spaces, strict=True):
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", "wire")
            for device in ("lo", "wire"):
                ip("-n", space, "link", "set", device, "up")
        names = tmp_path / "hosts"
        names.write_text("".join(f"10.77.0.{number} curia{number}\n" for number in NUMBERS) + "127.0.0.1 localhost\n")
        enter = f'hostname "$0" && mount --bind {names} /etc/hosts && exec "$@"'
        yield [
            Host(
                ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "sh", "-c", enter, space],
                f"10.77.0.{number}",
            )
            for number, space in zip(NUMBERS, spaces, strict=True)
        ]
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@pytest.mark.parametrize("end", [0, 1])
def test_a_cut_wire_stops_both_and_the_next_call_goes_on(tmp_path, hosts, end):
    """Nobody has died and no connection was closed: each hears nothing more of the other."""
    config = config_file(tmp_path, 2, 2)
    flags = [*LONG, "--peer-timeout=20"]
    job = Job(config, tmp_path / "run", 2, 2, flags, hosts)
    job.reach(6)
    ip("-n", f"curia{NUMBERS[end]}", "link", "set", "wire", "down")
    began = time.monotonic()
    ended = job.end()
    assert time.monotonic() - began < 60
    for number, (code, lines) in enumerate(ended):
        assert code == 42 and len(lines) == 1, ended
        assert f"process {number} stops: process {1 - number} has been silent for 20 s" in lines[0]
    ip("-n", f"curia{NUMBERS[end]}", "link", "set", "wire", "up")
    start = max(int(name) for name in job.steps() if name.isdigit())
    again = Job(config, tmp_path / "run", 2, 2, flags, hosts)
    again.reach(start + 4)
    stopped_together(again)
    rows = again.rows()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_run_has_one_writer_wherever_it_is(tmp_path, hosts):
    """From the other host nobody sees the owner's process: its lock tells that it lives, and later that it has died."""
    config = config_file(tmp_path, 1, 1)
    flags = [*LONG, "--config.total_steps=4000"]
    job = Job(config, tmp_path / "run", 1, 1, flags, hosts[:1])
    job.reach(2)
    ((code, lines),) = Job(config, tmp_path / "run", 1, 1, flags, hosts[1:]).end()
    assert code == 2 and len(lines) == 1 and "curia1" in lines[0], lines
    job.processes[0].kill()
    job.processes[0].communicate()
    began = time.monotonic()
    again = Job(config, tmp_path / "run", 1, 1, flags, hosts[1:])
    again.reach(len(job.rows()) + 2)
    assert time.monotonic() - began > lock.STALE / 2
    stopped_together(again)
