"""Pre-train.

    python launch/main.py --config=configs/vitg.py --config.data.corpus=CORPUS [--workdir=runs/vitg]
    python launch/main.py --verify-checkpoints=runs/vitg
    python launch/main.py --branch=runs/vitg@25000 --workdir=runs/vitg_slower [--config=...]
    python launch/main.py --replay=runs/vitg/bad_step

Called again with the same --workdir it goes on from the newest checkpoint that is whole. SIGTERM, SIGINT or SIGUSR1: it
saves and exits with code 42, or at once where there is nothing to save; a second one, two seconds later, does not wait
for the save. Of several processes all stop if one is asked. Exit codes: 0 done, 1 a fault, 2 your mistake (one line
says which), 42 stopped early and safe to requeue, 43 do not requeue (a loss was not finite, say).
"""

from curia2_jax.parallel.signals import StopRequest

STOP = StopRequest()
if __name__ == "__main__":
    STOP.listen()  # before the imports, which can take minutes on a cold file system

import os  # noqa: E402
import pathlib  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from curia2_jax.errors import UserError  # noqa: E402
from curia2_jax.parallel import cluster as hosts  # noqa: E402
from launch import command  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/ and the name of the config.")
_VERIFY = flags.DEFINE_string("verify-checkpoints", None, "Only say which checkpoints of this run are whole.")
_BRANCH = flags.DEFINE_string("branch", None, "RUN@STEP that a new workdir goes on from; default config: that of RUN.")
_REPLAY = flags.DEFINE_string("replay", None, "Only do the bad step again whose folder this is, and compare.")
_PROFILE = flags.DEFINE_bool("profile", False, "Trace steps 10 to 15 into the folder profile/ of the run.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; default: what the scheduler says.")
_PROCESSES = flags.DEFINE_integer("num-processes", None, "Processes of this run, all told.")
_PEER_TIMEOUT = flags.DEFINE_integer("peer-timeout", 120, "Seconds after which a silent process is taken for dead.")
_PROCESS = flags.DEFINE_integer("process-id", None, "Number of this one, from 0.")


def run(_: list[str]) -> int:
    if _VERIFY.value:
        from curia2_jax.training import salvage

        return salvage.tell(pathlib.Path(_VERIFY.value))
    if _BRANCH.value and not _WORKDIR.value:
        raise UserError("--workdir: missing; write a new folder for the branch")
    config = {} if (_BRANCH.value or _REPLAY.value) and not _CONFIG.present else command.config_of(_CONFIG)
    cluster = hosts.cluster(os.environ, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    import jax  # after the flags: a wrong one needs no backend

    from curia2_jax.parallel import compile_cache, compiler, preemption
    from curia2_jax.training import branch, capsule, checkpoints
    from curia2_jax.training.loop import train

    if _BRANCH.value and not config:
        config = checkpoints.read_config(branch.parse(_BRANCH.value)[0])
    if cluster is not None:
        hosts.start(cluster, _PEER_TIMEOUT.value)
    preemption.watch(STOP.make)
    compiler.configure(jax.default_backend())
    hosts.check_alone(cluster, jax.process_count())
    compile_cache.use(os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/curia2_jax/xla")))
    try:
        if _REPLAY.value:
            return capsule.replay(pathlib.Path(_REPLAY.value))
        workdir = pathlib.Path(_WORKDIR.value or f"runs/{pathlib.Path(command.config_file()).stem}")
        return train(config, workdir, STOP, profile=_PROFILE.value, source=_BRANCH.value or "")
    except UserError:
        raise
    except Exception:
        if cluster is None:
            raise
        time.sleep(5)  # if this is because another process has died, the relay says so and ends this one
        traceback.print_exc()
        os._exit(1)  # and not wait for the others, which wait for this one


if __name__ == "__main__":
    command.start(run)
