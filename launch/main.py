"""Pre-train.

    python launch/main.py --config=configs/vitg.py --config.data.corpus=CORPUS [--workdir=runs/vitg]

Called again with the same --workdir it goes on from the newest checkpoint. SIGTERM, SIGINT or SIGUSR1: it saves and
exits with code 42. Exit codes: 0 done, 1 a fault, 2 your mistake (one line says which), 42 stopped early and safe to
requeue, 43 do not requeue (a loss was not finite).
"""

import os
import pathlib
import signal
import sys

from absl import app, flags
from ml_collections import config_flags

from curia2_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/ and the name of the config.")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run(_: list[str]) -> int:
    requests: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda received, _: requests.append(received))
    if _CONFIG.value is None:
        raise UserError("--config: missing; write --config=configs/vitb.py")
    import jax  # after the flags: a wrong one needs no backend

    from curia2_jax.training.loop import train

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/curia2_jax/xla"))
    jax.config.update("jax_compilation_cache_dir", cache)
    config = _CONFIG.value.to_dict()
    name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    return train(config, workdir, lambda: bool(requests))


def parse(argv: list[str]) -> list[str]:
    """Flags as absl reads them, but a wrong one is one line and exit code 2."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> None:
    try:
        code = run(argv)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
