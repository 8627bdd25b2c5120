"""Two reports compared from their predictions alone."""

import numpy as np
import pytest
from scipy import stats

from curia2_jax.curiabench import answers, paired, protocol
from curia2_jax.errors import UserError
from tests.curiabench.test_comparison import answers as drawn

(SCORING,) = protocol.SCORINGS


def better(one, share, seed=5):
    """The same task of a model that is right in a share of the cases more."""
    rng = np.random.default_rng(seed)
    right = rng.random(len(one.targets)) < share
    outputs = {key: [np.where(right[:, None], np.eye(3)[one.targets], seeds[0])] for key, seeds in one.outputs.items()}
    return one._replace(outputs=outputs)


def test_a_difference_is_that_of_scores_with_p_of_sign_flips():
    """Balanced accuracy of equal classes is nearly accuracy, whose permutation test is SciPy's."""
    one = drawn()
    lines = paired.compare([better(one, 0.5)], [one])
    assert [(line.task, line.head) for line in lines] == [("organs", "linear"), ("organs", "knn")]
    for line in lines:
        assert line.gain[0] == pytest.approx(line.first - line.second)
        assert line.patients == 10 and line.gain[1] > 0 and line.p < 0.05
        assert line.adjusted >= line.p
    hits = [(o.outputs["trained", "knn"][0].argmax(1) == o.targets).reshape(10, 6).mean(1)
            for o in (better(one, 0.5), one)]  # fmt: skip
    expected = stats.permutation_test((hits[0] - hits[1],), np.mean, permutation_type="samples").pvalue
    assert lines[1].p == pytest.approx(expected, abs=0.01)


def test_samples_are_matched_by_name_and_not_by_order():
    """The order of a table does not matter; other samples, targets or patients are refused in one line."""
    one, turn = drawn(), np.random.default_rng(0).permutation(60)
    turned = one._replace(
        samples=one.samples[turn], patients=one.patients[turn], slices=one.slices[turn], targets=one.targets[turn],
        outputs={key: [seed[turn] for seed in seeds] for key, seeds in one.outputs.items()},
    )  # fmt: skip
    for line in paired.compare([one], [turned]):
        assert line.gain == [0, 0, 0] and line.p == 1
    for change, words in (
        ({"samples": np.char.add(one.samples, "x")}, "test samples or classes"),
        ({"targets": one.targets[::-1]}, "targets or patients"),
        ({"task": "another"}, "the tasks organs and another"),
    ):
        with pytest.raises(UserError, match=words) as error:
            paired.compare([one], [one._replace(**change)])
        assert "\n" not in str(error.value)


def test_many_questions_are_corrected_for_and_their_mean_is_none_of_them():
    """Holm over tasks and heads; the mean stands last."""
    tasks = [drawn(seed, f"task {seed}") for seed in range(3)]
    lines = paired.compare([better(one, 0.3, seed) for seed, one in enumerate(tasks)], tasks)
    assert [line.task for line in lines[-2:]] == [paired.MEAN] * 2 and lines[-1].adjusted is None
    first = min(lines[:6], key=lambda line: line.p)
    assert first.adjusted == pytest.approx(min(6 * first.p, 1))
    text = paired.table(lines, SCORING)
    assert "A is better" in text and text.count("\n") == 9


def test_few_patients_get_no_word():
    """However small p is."""
    one = drawn()
    few = one._replace(patients=np.char.add("p", (np.arange(60) // 12).astype(str)))
    text = paired.table(paired.compare([better(few, 1.0)], [few]), SCORING)
    assert text.count("5 patients: no verdict") == 2 and "better" not in text


def test_what_is_written_is_what_is_read(tmp_path):
    """Bit for bit, with seeds, classes and the order of samples."""
    one, other = drawn(seeds=3), drawn(1, "second task")
    answers.write(tmp_path / answers.FILE, [one, other])
    for before, after in zip((one, other), answers.read(tmp_path), strict=True):
        assert (before.task, before.kind, before.classes) == (after.task, after.kind, after.classes)
        for name in ("samples", "patients", "slices", "targets"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
        assert before.outputs.keys() == after.outputs.keys()
        for key, seeds in before.outputs.items():
            np.testing.assert_array_equal(seeds, after.outputs[key])


@pytest.mark.parametrize("content", [None, b"no table"])
def test_what_is_no_report_is_one_line(tmp_path, content):
    if content:
        (tmp_path / answers.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"predictions.parquet: (not there|no predictions)") as error:
        answers.read(tmp_path)
    assert "\n" not in str(error.value)
