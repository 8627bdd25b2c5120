"""The small recipes and corpora of the other rooms' tests."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "training"), str(TESTS / "data")]
