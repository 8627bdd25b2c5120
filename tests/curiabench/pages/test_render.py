"""The pages as HTML: whole, escaped, alone, and with the numbers of results.json."""

import copy
import html.parser
import re
from urllib.parse import unquote

import numpy as np
import pytest
from sklearn import metrics

from curia2_jax.curiabench import attention, report
from curia2_jax.curiabench.pages import render
from curia2_jax.curiabench.pages.images import Images
from curia2_jax.curiabench.protocol import scoring_of
from curia2_jax.curiabench.results import page_of
from tests.curiabench.pages.conftest import results_of

KINDS = ["classification", "regression", "survival", "retrieval", "multi-label", "segmentation"]
VOID = ("img", "meta", "br", "rect", "line", "path", "circle")


class Page(html.parser.HTMLParser):
    """Text, cells of tables and attributes of a page, and whether its elements close in order."""

    def __init__(self, source):
        super().__init__()
        self.open, self.links, self.tags, self.lines = [], [], [], []
        self.alts, self.text, self.outside = [], "", ""
        self.feed(source)
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.links += [found[name] for name in ("src", "href") if name in found]
        self.alts += [found.get("alt")] if tag == "img" else []
        self.alts += [found.get("aria-label")] if tag == "svg" else []
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data + " "
        if "td" in self.open or "th" in self.open:
            self.lines[-1][-1] += data + " "

    def cells(self, title):
        """The cells of the first line of a table that begins with a title."""
        lines = [[" ".join(cell.split()) for cell in line] for line in self.lines]
        return next(line[1:] for line in lines if line[0] == title)


def index_of(found):
    return render.index(found.results, {"crops": "data:image/png;base64,AAAA", "other": "data:image/png;base64,AAAA"})


def task_of(found):
    return render.task(*found)


def shown(score, sign=""):
    return f"{score[0]:{sign}.3f} {score[1]:{sign}.3f} to {score[2]:{sign}.3f}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page", [index_of, task_of])
def test_a_page_is_whole_escaped_and_alone(reports, kind, page):
    """Tags close in order; nothing is run, styled or fetched from elsewhere; labels are text; every picture is said."""
    source = page(reports[kind])
    found = Page(source)
    assert not {"script", "link", "iframe", "object", "b>"} & set(found.tags)
    assert not re.search(r"https?:|@import|url\(|javascript:| on\w+=", source)
    local = ("data:image/png;base64,", "pages/", "../report.html")
    assert found.links and all(link.startswith(local) for link in found.links)
    assert all(found.alts)
    assert "runs/<b>" in found.text or page is task_of
    assert "a model & <b>of</b> others" in found.text
    if kind == "classification" and page is task_of:
        assert "<script>console.error('a label ran')</script>" in found.text


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_task_page_are_those_of_the_results(reports, kind):
    """Every row by every head and metric, and every difference, with its interval."""
    results, answers, _ = reports[kind]
    page = Page(task_of(reports[kind]))
    part = results["tasks"][answers.task]
    lines = [[" ".join(cell.split()) for cell in line] for line in page.lines]
    for table, signs in (("rows", ""), ("trained_minus", "+")):
        for by_head in part[table].values():
            for by_metric in by_head.values():
                expected = [shown(score, signs) for score in by_metric.values()]
                assert any(line[1 : len(expected) + 1] == expected for line in lines)


def test_a_task_page_begins_with_its_own_verdict(reports):
    """Of that task alone, whatever else the report has."""
    results, answers, images = copy.deepcopy(reports["classification"])
    expected = report.verdict({key: value for key, value in results.items() if key != "leak"})
    assert expected in Page(render.task(results, answers, images)).text
    results["tasks"]["another"] = results["tasks"][answers.task] | {"test": {"patients": 2}}
    assert expected in Page(render.task(results, answers, images)).text


def test_numbers_of_classes_are_of_the_same_answers(reports):
    """Their mean is the score of the task, and recall and AUROC are scikit-learn's."""
    results, answers, _ = reports["classification"]
    page = Page(task_of(reports["classification"]))
    outputs = answers.outputs["trained", "linear"][0]
    scores = results["tasks"][answers.task]["rows"]["trained"]["linear"]
    assert page.cells("Mean")[:2] == [shown(scores["balanced_accuracy"]), shown(scores["auroc"])]
    recalls = metrics.recall_score(answers.targets, outputs.argmax(1), labels=[0, 1, 2], average=None)
    for k, recall in enumerate(recalls):
        area = metrics.roc_auc_score(answers.targets == k, outputs[:, k])
        name = f"{answers.classes[k]} {(answers.targets == k).sum()} samples, 12 patients"
        cells = next(line for line in page.lines if " ".join(line[0].split()).startswith(name))
        assert cells[1].split()[0] == f"{recall:.3f}" and cells[2].split()[0] == f"{area:.3f}"
        assert f"AUROC {area:.3f}, AP" in page.text
    assert "nobody has it" not in [line[0].strip() for line in page.lines]


def test_numbers_of_labels_are_of_those_whose_answer_is_known(reports):
    """Scikit-learn's, of each by itself, with counts; their mean is the score of the task."""
    results, answers, _ = reports["multi-label"]
    page = Page(task_of(reports["multi-label"]))
    outputs = answers.outputs["trained", "linear"][0]
    scores = results["tasks"][answers.task]["rows"]["trained"]["linear"]
    assert page.cells("Mean")[:2] == [shown(scores["auroc"]), shown(scores["average_precision"])]
    for k, label in enumerate(answers.classes):
        known = ~np.isnan(answers.targets[:, k])
        yes, output = answers.targets[known, k] == 1, outputs[known, k]
        name = f"{label} {yes.sum()} of {known.sum()} samples, 12 patients"
        cells = next(line for line in page.lines if " ".join(line[0].split()).startswith(name))
        found = [metrics.roc_auc_score(yes, output), metrics.average_precision_score(yes, output)]
        assert [cell.split()[0] for cell in cells[1:3]] == [f"{value:.3f}" for value in found]
        assert f"AUROC {found[0]:.3f}, AP {found[1]:.3f}" in page.text


def test_structures_are_means_over_the_patients_who_have_them(reports):
    """Dice counted again, over all slices of a patient."""
    results, answers, _ = reports["segmentation"]
    page = Page(task_of(reports["segmentation"]))
    both, found, truth = answers.outputs["trained", "dense"][0].reshape(12, 20, 4, 5)[..., :3].sum(1).transpose(2, 0, 1)
    for k, label in enumerate(answers.classes[:3]):
        cells = page.cells(f"{label} 12 patients".replace("  ", " "))
        assert cells[0].split()[0] == f"{np.mean(2 * both[:, k] / (found + truth)[:, k]):.3f}"
    scores = results["tasks"][answers.task]["rows"]["trained"]["dense"]
    assert page.cells("Mean")[:3] == [shown(scores[name]) for name in ("dice", "surface_dice", "minus_hd95")]


def test_the_curve_of_labelled_patients_is_that_of_the_results(reports):
    """A line a number of patients, a column a row of the protocol; no curve where none was asked for."""
    results, answers, _ = reports["classification"]
    page = Page(task_of(reports["classification"]))
    few = results["tasks"][answers.task]["few_shot"]
    for place, title in enumerate(("3 10 %", "15 50 %", "30 100 %")):
        assert page.cells(title) == [shown(shots[place]["score"]) for shots in few.values()]
    assert "How many labelled" in page.text and "How many labelled" not in Page(task_of(reports["regression"])).text


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_attention_over_slices_has_the_scores_and_charts_of_any_head(reports, kind):
    """As they are on a page whose primary head gave the same answers, and nothing where it was not asked for."""
    results, one, images = reports[kind]
    primary, other = (head.name for head in scoring_of(kind).heads)
    rows = [row for row, head in one.outputs if head == other]
    given = {
        (row, attention.HEAD.name): one.outputs[back, other][:1] * len(one.outputs[row, other])
        for row, back in zip(rows, rows[::-1], strict=True)
    }
    one = one._replace(aside={**one.aside, **given})
    results = copy.deepcopy(results)
    results["tasks"][one.task]["attention"] = attention.compared(one, scoring_of(kind))
    page = task_of((results, one, images))
    before, after = page.split("<h2>Volumes by attention over their slices</h2>")
    after, _ = after.split("<h2>Cases</h2>")
    as_primary = one._replace(
        aside={},
        outputs={(row, primary): seeds for (row, _), seeds in given.items()}
        | {key: seeds for key, seeds in one.outputs.items() if key[1] == other},
    )
    witness = task_of((results_of(as_primary), as_primary, images))
    drawn = re.compile(r'<path [^>]*>|<circle [^>]*>|<rect [^>]*>|<td class="right"[^>]*>[^<]*')
    begun = witness.index("<h2>Classes</h2>" if kind == "classification" else "<h2>Predicted and true")
    assert drawn.findall(after) == drawn.findall(witness[begun:].split("<h2>Cases</h2>")[0])
    assert len(drawn.findall(after)) > 20 and drawn.findall(after) != drawn.findall(before[-len(after) :])
    lines = [[" ".join(cell.split()) for cell in line] for line in Page(after).lines]
    for table, signs in (("rows", ""), ("trained_minus", "+")):
        for by_head in results["tasks"][one.task]["attention"][table].values():
            expected = [shown(score, signs) for score in by_head[attention.HEAD.name].values()]
            assert any(line[1 : len(expected) + 1] == expected for line in lines)
    assert "by attention" in Page(page).text and "by attention" not in Page(task_of(reports[kind])).text


def test_calibration_and_residuals_are_counted_again(reports):
    """By another formula, on the answers."""
    _, answers, _ = reports["classification"]
    outputs = answers.outputs["trained", "linear"][0]
    sure, right = outputs.max(1), outputs.argmax(1) == answers.targets
    edges = np.digitize(sure, np.linspace(0, 1, 11), right=True)
    error = sum(abs((sure - right)[edges == one].sum()) for one in range(1, 11)) / 240
    assert f"ECE: trained {error:.3f}," in Page(task_of(reports["classification"])).text
    _, answers, _ = reports["regression"]
    off = answers.outputs["trained", "ridge"][0] - answers.targets
    cells = Page(task_of(reports["regression"])).cells("Trained backbone")
    lines = [line for line in Page(task_of(reports["regression"])).lines if line[0].strip() == "Trained backbone"]
    assert cells and [float(cell) for cell in lines[-1][1:]] == pytest.approx(
        [np.abs(off).mean(), np.sqrt(np.mean(off**2)), off.mean()], rel=1e-3
    )


def test_confusion_is_that_of_the_results(reports):
    """Counts in the order of the classes; a class without a sample has no line."""
    results, answers, _ = reports["classification"]
    page = Page(task_of(reports["classification"]))
    counts = results["tasks"][answers.task]["confusion"]["trained"]["linear"]
    for label, expected in zip(answers.classes[:3], counts, strict=False):
        lines = [line for line in page.lines if line[0].strip() == label and len(line) == 5]
        assert [int(cell or 0) for cell in lines[0][1:]] == expected


def test_the_leak_and_the_provenance_are_on_every_page(reports):
    """In words, with hashes, command, commit, device and date."""
    for source in (index_of(reports["regression"]), task_of(reports["regression"])):
        text = Page(source).text
        assert "Pre-training saw 3 of the 12 test patients and 7 of the 240 test images" in text
        for word in ("f00d" * 16, "--model=", "c0ffee", "2026-01-01", "5ha", "cpu"):
            assert word in text
    found = copy.deepcopy(reports["regression"].results)
    del found["leak"]
    assert "was not looked at" in render.index(found, {})


def test_the_index_leads_to_the_page_of_a_task_whatever_its_name(reports):
    """A name of any signs is text, and an address of the file that it is written to."""
    results, answers, images = copy.deepcopy(reports["regression"])
    name = 'a#b <i>?&"c'
    results["tasks"][name] = results["tasks"].pop(answers.task)
    index, page = render.index(results, {}), render.task(results, answers._replace(task=name), images)
    (link,) = [one for one in Page(index).links if one.startswith("pages/")]
    assert unquote(link) == page_of(name) and not set(link) & set('#?<>& "')
    assert name in Page(index).text and name in Page(page).text
    assert "../report.html#how" in Page(page).links and 'id="how"' in index


def test_a_kind_that_is_not_known_has_a_page_of_scores(reports):
    """And none of the charts."""
    results, answers, _ = reports["survival"]
    text = Page(render.task(results, answers._replace(kind="another"), Images())).text
    assert "Kaplan" not in text and "Concordance, 0 to 1" in text
    assert "Kaplan" in Page(task_of(reports["survival"])).text


@pytest.mark.parametrize("patients, words", [(4, "4 patients are too few for a verdict"), (1, "too narrow")])
def test_pages_warn_of_few_patients_and_of_one(reports, patients, words):
    """Few are too few for a verdict, intervals of one are too narrow."""
    results, answers, images = copy.deepcopy(reports["classification"])
    part = results["tasks"][answers.task]
    assert words not in Page(render.task(results, answers, images)).text
    part["test"] = part["test"] | {"patients": patients}
    part["resampled"] = "patient" if patients > 1 else "slice"
    assert words in Page(render.task(results, answers, images)).text


def test_pages_say_what_weakens_a_task(reports):
    """Warnings of reading, slices of test that train has, and classes of few patients."""
    results, answers, images = copy.deepcopy(reports["classification"])
    part = results["tasks"][answers.task]
    part |= {"warnings": ["<i>odd"], "test_samples_seen_in_train": 7, "rare_classes": {"lung": 2}}
    for source in (render.index(results, {}), render.task(results, answers, images)):
        assert "<i>odd" in Page(source).text and "7 of the 240 test samples lie on slices" in Page(source).text
    assert "hardly known: lung (2)." in Page(source).text


def test_an_undefined_score_is_a_dash(reports):
    """Neither 0 nor a crash."""
    results, answers, images = copy.deepcopy(reports["classification"])
    for part in (results["tasks"][answers.task], results["mean"]):
        part["rows"]["random"]["knn"]["auroc"] = [None, None, None]
        part["trained_minus"]["mask-only"]["linear"]["balanced_accuracy"] = [None, None, None]
    render.index(results, {})
    page = Page(render.task(results, answers, images))
    cells = [line for line in page.lines if line[0].strip() == "Same backbone, random weights"]
    assert cells[1][3].strip() == "-"
