"""The process that decodes compressed pixels; `decoding` starts it and asks it.

It imports nothing of the package, so that it starts quickly, and ends with its input. Decoders write to standard output
as they like, so that the answers go to a copy of it. An answer is a line of JSON, then the bytes of the numbers.
"""

import json
import os
import pickle
import signal
import sys
import warnings

import numpy as np


def main() -> None:
    """Decode (dataset, plugin, seconds) after (dataset, plugin, seconds) from standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside of a library
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what asks decides
    warnings.simplefilter("ignore")
    answers.write(b"ready\n")
    answers.flush()
    while True:
        try:
            dataset, plugin, seconds = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            dataset.pixel_array_options(decoding_plugin=plugin)
            pixels = np.ascontiguousarray(dataset.pixel_array)
            head = {"dtype": pixels.dtype.str, "shape": pixels.shape}
        except Exception as error:  # decoders may raise anything on malformed bytes
            pixels = None
            head = {"error": f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(head).encode() + b"\n")
        if pixels is not None:
            answers.write(pixels.data)
        answers.flush()


if __name__ == "__main__":
    main()
