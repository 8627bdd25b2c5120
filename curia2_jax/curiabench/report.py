"""The report: one self-contained HTML file, and the sentence that says what came out."""

from importlib import resources

import jinja2

from curia2_jax.curiabench.pictures import SlicePicture

ROW_NAMES = {"trained": "Trained backbone", "random": "Same backbone, random weights", "pixels": "Raw pixels"}
HEAD_NAMES = {"linear": "Linear probe", "knn": "k nearest neighbours"}
CAPTIONS = {"crops": "What the student saw of the first images", "curves": "How training went"}
METRIC_NAMES = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "auroc": "AUROC"}


def verdict(results: dict) -> str:
    """One sentence on the primary score, balanced accuracy of the linear probe, averaged over tasks.

    A row is better or worse only when the 95 % interval of the difference, on the same resampled patients, does not
    hold zero.
    """
    mean, tasks = results["mean"], results["tasks"].values()
    value = mean["rows"]["trained"]["linear"]["balanced_accuracy"][0]
    parts = []
    for row, name in (("pixels", "raw pixels"), ("random", "the same backbone with random weights")):
        other = mean["rows"][row]["linear"]["balanced_accuracy"][0]
        difference, low, high = mean["trained_minus"][row]["linear"]["balanced_accuracy"]
        word = "better than" if low > 0 else "worse than" if high < 0 else "not distinguishable from"
        parts.append(
            f"{word} {name} ({other:.3f}; difference {difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f})"
        )
    of = "" if len(tasks) == 1 else f", mean of {len(tasks)} tasks"
    fewest = min(task["test"]["patients"] for task in tasks)
    on = "on slices of one patient" if fewest == 1 else f"on {fewest} test patients"
    on += " in the smallest" if of else ""
    return f"The trained backbone (balanced accuracy {value:.3f}{of}, {on}) is {parts[0]} and {parts[1]}."


def table(results: dict) -> str:
    """The rows of every task as text: each head's balanced accuracy and AUROC with their 95 % intervals."""

    def cell(score: list[float | None]) -> str:
        return "undefined" if score[0] is None else "{:.3f} [{:.3f}, {:.3f}]".format(*score)

    parts = results["tasks"] | ({"mean of the tasks": results["mean"]} if len(results["tasks"]) > 1 else {})
    columns = [(head, metric) for head in HEAD_NAMES for metric in ("balanced_accuracy", "auroc")]
    short = {"linear": "linear", "knn": "kNN"}
    header = ["", "", *(f"{short[head]}, {METRIC_NAMES[metric]}" for head, metric in columns)]
    lines = [header]
    for name, part in parts.items():
        for row, row_name in ROW_NAMES.items():
            lines.append([name, row_name, *(cell(part["rows"][row][head][metric]) for head, metric in columns)])
            name = ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def render(results: dict, tokens: dict[str, list[SlicePicture]], run_pictures: dict[str, str]) -> str:
    """HTML of `results` (as in results.json).

    tokens: pictures of each task's test slices; run_pictures: data URIs by name, of the training run. Nothing is loaded
    from elsewhere.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["score"] = lambda score: "-" if score[0] is None else f"{score[0]:.3f}"
    environment.filters["interval"] = lambda score: "" if score[1] is None else f"{score[1]:.3f} to {score[2]:.3f}"
    environment.filters["signed"] = lambda score: "-" if score[0] is None else f"{score[0]:+.3f}"
    environment.filters["signed_interval"] = lambda score: (
        "" if score[1] is None else f"{score[1]:+.3f} to {score[2]:+.3f}"
    )
    template = environment.from_string(resources.files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        results=results,
        tokens=tokens,
        run_pictures=run_pictures,
        captions=CAPTIONS,
        row_names=ROW_NAMES,
        head_names=HEAD_NAMES,
        metric_names=METRIC_NAMES,
    )
