"""The pages of a report as HTML: an index, and one page a task. They load nothing from elsewhere and run no script."""

from collections.abc import Callable, Iterable
from urllib.parse import quote

import jinja2

from curia2_jax.curiabench import leaks
from curia2_jax.curiabench.answers import Answers
from curia2_jax.curiabench.intervals import FEWEST_PATIENTS, RARE
from curia2_jax.curiabench.pages.images import Images
from curia2_jax.curiabench.pages.sections import by_attention, sections_of
from curia2_jax.curiabench.protocol import KNOWN, TRAINED, Row, rows_of, scoring_behind
from curia2_jax.curiabench.report import forest, verdict
from curia2_jax.curiabench.results import PAGE, Results, page_of

CAPTIONS = {"crops": "What the student saw of the first images", "curves": "How training went"}
OTHERS = 4  # colors of other people's models


def index(results: Results, run_pictures: dict[str, str]) -> str:
    """report.html. `run_pictures`: data URIs of the training run, by name."""
    lines, zero, reach = forest(results)
    return (
        _environment(results)
        .get_template("index.html.j2")
        .render(
            **_common(results),
            forest=lines,
            zero=zero,
            reach=reach,
            run_pictures=run_pictures,
            captions=CAPTIONS,
            pages={name: quote(page_of(name)) for name in results["tasks"]},
        )
    )


def task(results: Results, one: Answers, images: Images) -> str:
    """The page of the task that `one` has the answers of."""
    part = results["tasks"][one.task]
    alone: Results = {**results, "tasks": {one.task: part}, "mean": part}
    alone.pop("leak", None)  # it has a place of its own
    return (
        _environment(results)
        .get_template("task.html.j2")
        .render(
            **_common(results),
            name=one.task,
            task=part,
            images=images,
            verdict=verdict(alone),
            home=f"../{PAGE}",
            sections=sections_of(part, one, scoring_behind(results)),
            by_attention=by_attention(part, one, scoring_behind(results)),
        )
    )


def _common(results: Results) -> dict:
    return {
        "results": results,
        "leak": leaks.sentence(results["leak"]) if "leak" in results else "",
        "trained": TRAINED,
        "scoring": scoring_behind(results),
        "fewest_patients": FEWEST_PATIENTS,
        "rare": RARE,
    }


def _environment(results: Results) -> jinja2.Environment:
    """Templates of this folder with the filters they use; whatever is put into them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_filters())
    parts = [*results["tasks"].values(), results["mean"]]
    environment.filters["color"] = _colors(name for part in parts for name in part["rows"])
    environment.globals["rows_of"] = rows_of
    return environment


def _filters() -> dict[str, Callable]:
    return {
        "clip": lambda value: min(max(value, 0), 1),  # some scores can be negative, a bar cannot
        "percent": lambda value: f"{100 * min(max(value, 0), 1):.2f}%",
        "score": lambda score: "-" if score[0] is None else f"{score[0]:.3f}",
        "interval": lambda score: "" if score[1] is None else f"{score[1]:.3f} to {score[2]:.3f}",
        "signed": lambda score: "-" if score[0] is None else f"{score[0]:+.3f}",
        "signed_interval": lambda score: "" if score[1] is None else f"{score[1]:+.3f} to {score[2]:+.3f}",
    }


def _colors(names: Iterable[str]) -> Callable[[Row], str]:
    """The class in CSS of a row: its own name for those of every report, a color in turn for other people's models,
    whose names are no classes."""
    others = {
        row.name: number for number, row in enumerate(r for r in rows_of(dict.fromkeys(names)) if r.name not in KNOWN)
    }
    return lambda row: f"other-{others[row.name] % OTHERS}" if row.name in others else row.name
