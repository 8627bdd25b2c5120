"""Faults of the machine, which say nothing of the file being read: they stop an ingest, which can then go on."""

import errno
import os

# No room, no more open files, no more memory for the kernel.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_MENDED_BY = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close what holds files open",
    errno.ECHILD: "run it to see why",
}


class MachineFault(OSError):
    """The machine cannot read on; `filename` is where. Never the verdict on a file."""

    @property
    def line(self) -> str:
        """What is wrong and what to do about it, in one line."""
        where = f"{self.filename}: " if self.filename else ""
        mended_by = _MENDED_BY.get(self.errno or 0, "make room there, or set TMPDIR to another folder")
        return f"{where}{self.strerror}; {mended_by}"


def machine_fault(error: BaseException | None) -> MachineFault | None:
    """The fault of the machine that `error` is, or was raised because of; None where it is one of the file."""
    while error is not None:
        if isinstance(error, MachineFault):
            return error
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            return MachineFault(error.errno, os.strerror(error.errno), error.filename)
        error = error.__cause__ or error.__context__
    return None
