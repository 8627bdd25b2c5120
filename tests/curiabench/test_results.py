"""Reports on disk."""

import json

import pytest

from curia2_jax.curiabench import protocol, results
from curia2_jax.errors import UserError


def test_the_first_reports_name_no_kind_and_are_read_as_classification(tmp_path):
    """A report that was written before there were kinds still opens."""
    old = {"settings": {"device": "cpu", "primary": {"head": "linear", "metric": "balanced_accuracy"}}, "tasks": {}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    read = results.read(tmp_path)
    assert read == old
    assert protocol.scoring_behind(read).kind == "classification"


@pytest.mark.parametrize(("content", "words"), [(None, "results.json: not there"), ("{", "results.json: not JSON")])
def test_what_is_no_report_is_one_line(tmp_path, content, words):
    """The file, what is wrong with it, and what to do."""
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        results.read(tmp_path)
    assert "\n" not in str(error.value) and "launch/evaluate.py" in str(error.value)
