"""What a question put to class tokens was answered, for commands that tell it: no head is imported for that."""

from typing import NamedTuple

from curia2_jax.curiabench.results import defined

FEW = 5  # labelled patients where labels are scarce


class Answer(NamedTuple):
    """A question put to a head that learned from so many labelled patients: scores with 95 % intervals over patients.

    `scores` of every row; `gains`: of the first row minus each other one, on the same patients.
    """

    question: str
    head: str
    labelled: int
    scores: dict[str, list[float | None]]
    gains: dict[str, list[float | None]]
    patients: int  # who were tested


def side(gain: list[float | None]) -> str:
    """What an interval of a difference says."""
    _, low, high = defined(gain)
    return "above" if low > 0 else "below" if high < 0 else "not distinguishable from"


def table(answers: list[Answer]) -> list[str]:
    """Lines of text: the scores of every row, and what the first has more than each other one."""
    rows, others = list(answers[0].scores), list(answers[0].gains)
    lines = [f"{'':<31}{'head':<14}{'labels':<8}" + "".join(f"{row[:25]:<26}" for row in rows)
             + "".join(f"- {row[:25]:<26}" for row in others)]  # fmt: skip
    for one in answers:
        values = "".join(f"{defined(one.scores[row])[0]:<26.3f}" for row in rows)
        gains = "".join("{:+.3f} [{:+.3f}, {:+.3f}]".format(*defined(one.gains[row])).ljust(28) for row in others)
        lines.append(f"{one.question:<31}{one.head:<14}{one.labelled:<8}{values}{gains}".rstrip())
    return lines
