"""What class tokens answered, as a picture for people who do not read tables."""

from collections.abc import Sequence
from pathlib import Path

from curia2_jax.curiabench.questions_answer import Answer
from curia2_jax.curiabench.results import defined


def draw(path: Path, answers: Sequence[Answer]) -> None:
    """One line a comparison, one marker a row with its 95 % interval; further right is better."""
    from matplotlib.figure import Figure  # not pyplot: nothing global to close

    asked = list(dict.fromkeys(one.question for one in answers))
    figure = Figure(figsize=(5.2 * len(asked), 0.62 * len(answers) / len(asked) + 2.2))
    for axis, question in zip(figure.subplots(1, len(asked), squeeze=False)[0], asked, strict=True):
        own = [one for one in answers if one.question == question]
        rows = list(own[0].scores)
        for number, (row, marker) in enumerate(zip(rows, "os^Dv", strict=False)):
            values = [defined(one.scores[row]) for one in own]
            places = [place + 0.22 * (number - (len(rows) - 1) / 2) for place in range(len(own))]
            reach = [[value - low for value, low, _ in values], [high - value for value, _, high in values]]
            middle = [value for value, _, _ in values]
            axis.errorbar(middle, places, xerr=reach, fmt=marker, label=row, capsize=2)
        axis.set_yticks(range(len(own)), [f"{one.head}, labels of\n{one.labelled} patients" for one in own])
        axis.invert_yaxis()
        axis.set_title(question)
        axis.grid(axis="x", alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, ncols=len(rows), loc="lower left")
    patients = min(one.patients for one in answers)
    figure.suptitle(f"What is known of a scan without being told: {patients} patients that nobody had seen")
    figure.supxlabel("further right is better; lines are 95 % intervals over the patients", fontsize=9, y=0.09)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)
