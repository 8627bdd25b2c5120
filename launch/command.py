"""How the commands of this folder read flags and end: a mistake of the user is one line and exit code 2."""

import errno
import os
import pathlib
import re
import select
import shlex
import signal
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging
from ml_collections import config_flags

from curia2_jax.errors import UserError

# Disk full or no permission: the user's to fix.
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def at_home(path: str) -> str:
    """A path of this repository, as the caller's folder sees it."""
    return path if pathlib.Path.cwd() == ROOT else str(ROOT / path)


def call(line: list[str], dry_run: bool = False) -> None:
    """Prints and runs a command of this folder, in the caller's; a failure of it ends the caller with the same code.

    Ctrl-C reaches both: the command answers it, the caller waits for that. What else asks to stop is passed on.
    """
    line = [at_home(line[0]), *line[1:]]
    print("\n$ python " + shlex.join(line), flush=True)
    if dry_run:
        return
    with subprocess.Popen([sys.executable, *line]) as process:
        before = {
            number: signal.signal(number, lambda one, _: process.send_signal(one))
            for number in (signal.SIGTERM, signal.SIGUSR1)
        }
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue
        for number, answer in before.items():
            signal.signal(number, answer)
    if code:
        sys.exit(code if code > 0 else 128 - code)


def config_of(holder: flags.FlagHolder) -> dict[str, Any]:
    """What --config says, as nested dicts. Raises UserError when it is missing or its file cannot be read."""
    if not holder.present:
        raise UserError("--config: missing; write --config=configs/vitb.py")
    try:
        return holder.value.to_dict()
    except OSError as e:
        fault = fault_in_file(e) or f"{config_file()}: cannot be read; write a file such as configs/vitb.py"
        raise UserError(f"--config={fault}") from None
    except AttributeError:
        raise UserError(f"--config={config_file()}: its get_config() returns no ConfigDict; return one") from None


def config_file() -> str:
    """The file that --config names."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def required(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag that has no default. Raises UserError when it is missing."""
    if not flag.value:
        raise UserError(f"--{flag.name}: missing; write --{flag.name}=... (--help says what)")
    return flag.value


def parse(argv: list[str]) -> list[str]:
    """Flags as absl reads them, but --help is no failure, a wrong flag and a config file that fails are one line and
    exit code 2, and flags may follow other words.

    Raises:
      UserError: a flag, its value or the config file is wrong.
    """
    flags.FLAGS.set_gnu_getopt(True)
    try:
        return flags.FLAGS(argv)
    except BrokenPipeError:  # nobody reads the help
        raise
    except (Exception, SystemExit) as e:
        if fault := fault_in_file(e):
            raise UserError(f"--config: {fault}; mend the file") from None
        if isinstance(e, SystemExit):  # the flags for help end a process, with 1
            sys.exit(0)
        if isinstance(e, AttributeError) and "get_config" in str(e):
            raise UserError("--config: the file has no function get_config(); write one, as in configs/") from None
        if isinstance(e, KeyError | AttributeError) and (told := unknown_key(argv, str(e))):
            raise UserError(told) from None
        # A config file that is not there, or a key or value that it does not take, comes as one of the other errors.
        if isinstance(e, flags.Error | AttributeError | KeyError | TypeError | ValueError | OSError):
            raise UserError(" ".join(str(e).split())) from None
        raise


def fault_in_file(error: BaseException | None) -> str:
    """FILE:LINE: WHAT, if an exception was raised by a file of the user and not by those who load it; else nothing."""
    ours = *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")), str(ROOT / "launch"), "<"
    while error is not None:
        if isinstance(error, SyntaxError):
            place = f"{error.filename}:{error.lineno}: " if error.filename else ""
            return f"{place}{type(error).__name__}: {error.msg}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if not frame.filename.startswith(ours):
                return " ".join(f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {error}".split())
        error = error.__cause__ or error.__context__  # those who load it wrap what they catch
    return ""


def unknown_key(argv: list[str], said: str) -> str:
    """What to say of a `--config.KEY` that the config has not, whose first wrong part ConfigDict has `said`; or ""."""
    from curia2_jax.training.earlier import RENAMED

    missing = re.search(r"'(\w+)", said)
    for word in argv:
        path = word.lstrip("-").partition("=")[0].split(".")
        if missing is None or path[0] != "config" or missing[1] not in path[1:]:
            continue
        key = ".".join(path[1 : path.index(missing[1], 1) + 1])
        if key in RENAMED:
            return f"--config.{key}: has another name now; write --config.{RENAMED[key]}"
        near = re.search(r'Did you mean "(\w+)"', said)
        where = f"did you mean {near[1]}?" if near else "configs/common.py has every key"
        return f"--config.{key}: unknown key; {where}"
    return ""


def stray(word: str) -> str:
    """What to say of a word that belongs to no flag."""
    name = word.partition("=")[0]
    if "=" in word and name.split(".")[0] in flags.FLAGS:
        return f"found {word!r} without dashes; write --{word}"
    return f"found {word!r}, which belongs to no flag; write --FLAG=VALUE, see --help"


def use_utf8() -> None:
    """Starts the command again in Python's UTF-8 mode where the locale has another encoding: names of files have
    umlauts there, too, and the libraries that write them take UTF-8 alone."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.ignore_environment:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def start(run: Callable[[list[str]], int | None], *, takes_words: bool = False) -> NoReturn:
    """Runs a command with the words of its line; it returns its exit code, None for 0. Without `takes_words`, a word
    that belongs to no flag is a mistake."""
    use_utf8()
    logging.set_verbosity(logging.ERROR)

    def main(argv: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # hide the libraries' info messages
        if argv[1:] and not takes_words:
            raise UserError(stray(argv[1]))
        return run(argv)

    sys.exit(ended(lambda: app.run(main, flags_parser=parse)))


def ended(work: Callable[[], None]) -> int | str | None:
    """The exit code of a command, after its last words."""
    try:
        try:
            work()
            code = None
        except SystemExit as e:
            code = e.code
        sys.stdout.flush()
        return code
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not is_unread(sys.stdout):
            raise
        return 128 + signal.SIGPIPE
    except OSError as e:
        if e.errno not in NO_PLACE:
            raise
        where = f"{e.filename}: " if e.filename else ""
        print(f"error: {where}{e.strerror}; make room or choose another folder, then call again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; call again to go on", file=sys.stderr)
        return 130


def is_unread(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more (`| head`); Python's own last words into it are dropped then."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # errors are told always
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True
