"""A run: stopped, killed, resumed, poisoned. All on a corpus of noise and a model of two blocks."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from configs import demo
from curia2_jax.ending import NOT_AGAIN
from curia2_jax.errors import UserError
from curia2_jax.telemetry import metrics, resources
from curia2_jax.training import checkpoints
from curia2_jax.training.loop import DONE, STOPPED, train
from tests.training.tiny import tiny_config
from tests.training.zygote import Zygote

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The only figures that two equal runs may differ in.
TIMES = ("images_per_s", "data_wait", "eta_s", *resources.NAMES)


def command(folder: pathlib.Path, config: dict, run: pathlib.Path) -> list[str]:
    """launch/main.py on a config file that holds `config`."""
    file = folder / "tiny_run.py"
    file.write_text(
        "import json\nfrom ml_collections import ConfigDict\n\n\ndef get_config(arg=None):\n"
        f"    return ConfigDict(json.loads({json.dumps(json.dumps(config))}))\n"
    )
    return [sys.executable, str(ROOT / "launch" / "main.py"), f"--config={file}", f"--workdir={run}"]


def environment(cache: pathlib.Path) -> dict[str, str]:
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def what_happened(run: pathlib.Path) -> tuple[list[dict], str]:
    """(rows of metrics without the times, hash of the final state)."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in metrics.read(run / "metrics.jsonl")[0]]
    return rows, (run / "state.sha256").read_text()


def run_with_kills(tmp_path: pathlib.Path, corpus: pathlib.Path, cache: pathlib.Path, kills: int, steps: int) -> None:
    """One run left alone, one killed at random steps and once told to stop: they must not differ in one bit."""
    config = tiny_config(data__corpus=str(corpus), schedule__freeze_backbone_steps=steps // 2, model__init="fan_in") | {
        "total_steps": steps
    }
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    flag, rng = command(tmp_path, config, alone)[2], random.Random(kills)
    with Zygote(tmp_path / "calls", environment(cache)) as calls:
        assert calls.start(flag, f"--workdir={alone}").ended() == (DONE, [])
        for number in range(kills + 1):
            gentle = number == kills
            call = calls.start(flag, f"--workdir={killed}")
            call.reached("out", "step ", times=rng.randint(1, 4))
            time.sleep(rng.uniform(0, 0.05))
            call.send_signal(signal.SIGTERM if gentle else signal.SIGKILL)
            code, said = call.ended()
            if gentle:
                assert code in (DONE, STOPPED) and not said, said
                assert code == DONE or "stopped at step" in call.read("out")
            else:
                assert code in (-signal.SIGKILL, DONE), said
        assert calls.start(flag, f"--workdir={killed}").ended()[0] == DONE
    assert what_happened(killed) == what_happened(alone)
    assert len(what_happened(alone)[0]) == steps
    assert checkpoints.steps(killed)[-2:] == checkpoints.steps(alone)[-2:]
    # Drawn behind the last row, or the picture ends before the run does.
    changed = [(alone / name).stat().st_mtime_ns for name in ("metrics.jsonl", "images/curves.png")]
    assert changed == sorted(changed)


def test_killed_twice_equals_left_alone(tmp_path, corpus, cache):
    run_with_kills(tmp_path, corpus, cache, kills=2, steps=12)


@pytest.mark.soak
def test_killed_twenty_times_equals_left_alone(tmp_path, corpus, cache):
    run_with_kills(tmp_path, corpus, cache, kills=20, steps=90)


@pytest.mark.soak
def test_the_second_start_takes_the_compiled_step_from_the_cache(tmp_path, corpus):
    """What `make demo` trains, with the compiler that it has: at least three times faster, and one program for both."""
    cache = tmp_path / "cache"
    config = demo.get_config("1").to_dict()
    config["data"]["corpus"] = str(corpus)
    env = {name: value for name, value in environment(cache).items() if name != "XLA_FLAGS"}
    seconds = []
    for run in ("first", "second"):
        go = command(tmp_path, config, tmp_path / run)
        done = subprocess.run(go, check=True, env=env, timeout=600, capture_output=True, text=True)
        ((minutes, rest),) = re.findall(r"^compiled in (?:(\d+) min )?(\d+) s$", done.stdout, re.M)
        seconds.append(60 * int(minutes or 0) + int(rest))
    assert seconds[0] >= 3 * seconds[1], seconds
    assert len(list(cache.glob("jit_train_step-*-cache"))) == 1


@pytest.mark.soak  # tests/training/test_badsteps.py asks the same of smaller runs
def test_a_poisoned_step_changes_and_saves_nothing(tmp_path, corpus, capsys):
    """A learning rate beyond float32 makes the second loss infinite or NaN."""
    config = tiny_config(
        data__corpus=str(corpus), data__group_size=1, optim__base_lr=1e38, schedule__warmup_steps=0,
        checkpoint__every_steps=1, model__init="fan_in",
    )  # fmt: skip
    run = tmp_path / "run"
    assert train(config, run) == NOT_AGAIN
    report = json.loads((run / "nonfinite.json").read_text())
    assert checkpoints.steps(run) == list(range(1, report["step"]))
    assert len(report["batch"]) == 8 and report["batch"][0].startswith("record ")
    error = capsys.readouterr().err
    assert error.startswith(f"error: step {report['step']}: loss") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__corpus": ""}, "config.data.corpus: no corpus; write --config.data.corpus=FOLDER"),
        ({"data__corpus": "/nowhere/corpus"}, "/nowhere/corpus"),
        ({"parallel__fsdp": 3}, "config.parallel.fsdp: 3 does not divide the 8 devices"),
        ({"data__group_size": 8}, "config.data.global_batch: 8 images are no whole groups of 8"),
        ({"data__canvas": 32}, "data.canvas"),
        ({"init_from": "/nowhere/run"}, "/nowhere/run"),
        ({"model__in_channels": 3}, "config.model.in_channels: found 3, slices have one channel; write 1"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_checkpoint(tmp_path, corpus, change, message):
    batch = {"data__global_batch": 8, "data__group_size": 1, "masks__probability": 0.5}
    config = tiny_config(**({"data__corpus": str(corpus)} | batch | change))
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not checkpoints.steps(tmp_path / "run")


def test_a_working_directory_belongs_to_one_config(tmp_path, corpus):
    from curia2_jax.training import workdir

    config = tiny_config(data__corpus=str(corpus))
    workdir.claim(tmp_path / "run", config)
    workdir.claim(tmp_path / "run", config | {"log": {"every_steps": 7}})  # may change
    workdir.claim(tmp_path / "run", tiny_config(data__corpus=str(corpus), data__canvas=0))  # so may the padding
    with pytest.raises(UserError, match=r"a run with config\.data\.reduce = 0, now 1"):  # other batches
        workdir.claim(tmp_path / "run", tiny_config(data__corpus=str(corpus), data__reduce=1))
    with pytest.raises(UserError, match=r"a run with config\.optim\.base_lr = 0\.001, now 0\.5"):
        workdir.claim(tmp_path / "run", tiny_config(data__corpus=str(corpus), optim__base_lr=0.5))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and no run"):
        workdir.claim(tmp_path / "other", config)


def test_command_line_mistakes(tmp_path, corpus, cache):
    go = command(tmp_path, tiny_config(data__corpus=str(corpus)), tmp_path / "run")
    for arguments, message in (
        ([go[0], go[1]], "error: --config: missing"),
        ([*go, "--config.optim.base_lrr=1"], "base_lrr"),
        ([*go, "--config.data.global_batch=many"], "global_batch"),
        ([go[0], go[1], "--config=configs/nowhere.py"], "nowhere"),
    ):
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment(cache), cwd=ROOT, timeout=120)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_hash_tells_states_apart():
    from curia2_jax.training.state import TrainState, state_hash

    def state(x):
        return TrainState(jnp.int32(0), {"w": jnp.float32(x)}, {"w": jnp.float32(1)}, {}, {})

    assert state_hash(state(1.0)) == state_hash(state(1.0)) != state_hash(state(1.0 + 2**-23))
