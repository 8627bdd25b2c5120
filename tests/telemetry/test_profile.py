"""Which steps are traced."""

import jax

from curia2_jax.telemetry.profile import Profile


def test_steps_ten_to_fifteen_of_this_life(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    profile = Profile(tmp_path, start=100)
    seen = {}
    for step in range(101, 131):
        profile.before(step)
        seen[step] = len(calls)
    profile.close()
    assert calls == [("start", str(tmp_path / "profile")), ("stop",)]
    assert [step for step in seen if seen[step] == 1] == list(range(110, 116))


def test_a_run_that_ends_inside_closes_the_trace(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = Profile(tmp_path, start=0)
    for step in range(1, 12):
        profile.before(step)
    profile.close()
    profile.close()
    assert calls == ["start", "stop"]
