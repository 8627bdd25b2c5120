"""The pages in a browser: nothing complains, nothing sticks out on a phone, every picture is there."""

import html
import json
import re
import shutil
import subprocess

import pytest

from curia2_jax.curiabench.pages import render

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1100)
MEASURE = """<script>
addEventListener("load", () => {
  document.documentElement.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, images = [...page.images];
    return {wide: page.documentElement.scrollWidth, width: frame.contentWindow.innerWidth, images: images.length,
            loaded: images.filter(one => one.complete && one.naturalWidth > 0).length,
            charts: [...page.querySelectorAll("svg")].filter(one => one.getBoundingClientRect().width < 120).length};
  }));
});
</script>"""


def opened(folder, pages):
    """What the browser measures of every page at every width, and what it says on the console."""
    frames = [
        f'<iframe style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    ]
    (folder / "all.html").write_text(f"<!doctype html><meta charset=utf-8>{MEASURE}{''.join(frames)}")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
    command = [BROWSER, *flags, f"--user-data-dir={folder}/profile", (folder / "all.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.search(r'<html data-found="(.*?)"', done.stdout)[1]))
    return found, re.findall(r"CONSOLE.*", done.stderr)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome in PATH")
def test_pages_are_whole_in_a_browser(reports, tmp_path):
    """At the width of a phone and of a desk; a page that fails in every way shows that it would be seen."""
    bad = '<div style="width:900px">.</div><img src="data:image/png;base64,AAAA"><script>console.error("!")</script>'
    pages = [page for one in reports.values() for page in (render.index(one.results, {}), render.task(*one))]
    found, said = opened(tmp_path, [bad, *pages])
    assert [one["width"] for one in found] == [*WIDTHS] * len([bad, *pages])
    assert found[0]["wide"] > 390 and found[0]["loaded"] == 0
    assert len(said) == 2 and '"!"' in said[0]
    for one in found[2:]:
        assert one["wide"] <= one["width"] and one["loaded"] == one["images"] and not one["charts"]
    assert sum(one["images"] for one in found[2:]) == 2 * (40 + 40 + 35 + 35)
