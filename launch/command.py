"""How the commands of this folder read flags and end: a mistake of the user is one line and exit code 2."""

import errno
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from curia2_jax.errors import UserError

# Disk full or no permission: the user's to fix.
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def call(line: list[str]) -> None:
    """Prints and runs a command of this folder; a failure of it ends the caller with the same code.

    Ctrl-C reaches both: the command answers it, the caller waits for that.
    """
    print("\n$ python " + shlex.join(line), flush=True)
    with subprocess.Popen([sys.executable, *line], cwd=ROOT) as process:
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue
    if code:
        sys.exit(code if code > 0 else 128 - code)


def config_of(holder: flags.FlagHolder) -> dict[str, Any]:
    """What --config says, as nested dicts. Raises UserError when it is missing or its file cannot be read."""
    if holder.value is None:
        raise UserError("--config: missing; write --config=configs/vitb.py")
    try:
        return holder.value.to_dict()
    except OSError:
        raise UserError(f"--config={config_file()}: cannot be read; write a file such as configs/vitb.py") from None


def config_file() -> str:
    """The file that --config names."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def required(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag that has no default. Raises UserError when it is missing."""
    if not flag.value:
        raise UserError(f"--{flag.name}: missing; write --{flag.name}=... (--help says what)")
    return flag.value


def parse(argv: list[str]) -> list[str]:
    """Flags as absl reads them, but a wrong one is one line and exit code 2, and flags may follow other words."""
    flags.FLAGS.set_gnu_getopt(True)
    try:
        return flags.FLAGS(argv)
    # A config file that is not there, or a key or value that it does not take, comes as one of the other errors.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)


def start(run: Callable[[list[str]], int | None]) -> None:
    """Runs a command; it returns its exit code, None for 0."""

    def main(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # hide the libraries' info messages
        try:
            code = run(argv)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            code = 2
        except OSError as e:
            if e.errno not in NO_PLACE:
                raise
            where = f"{e.filename}: " if e.filename else ""
            print(f"error: {where}{e.strerror}; make room or choose another folder, then call again", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print("interrupted; call again to go on", file=sys.stderr)
            code = 130
        sys.exit(code)

    app.run(main, flags_parser=parse)
