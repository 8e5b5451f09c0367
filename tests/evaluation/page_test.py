# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The page of a report, as text and as a reader with a real browser has it."""

import json
import re
import time

import pytest

from medloc_jax.evaluation import (
    document,
    figures,
    gallery,
    page,
    plot_style,
    report,
    result_tables,
    run_folder,
)
from tests.evaluation import browser as browsers
from tests.evaluation import made_runs

PHONE, DESKTOP = (375, 812), (1280, 900)
METHODS = ("fixed", "medloc")
EXAMPLES = 40


def test_what_a_completion_says_cannot_end_the_script():
    text = "</script><script>alert(1)</script><!-- %%BODY%% \u2028"
    made = page.fill("<i>", "<p>body %%DATA%%</p>", {"text": text})
    assert made.count("<script") == 2 and made.count("</script>") == 2
    data = re.search(r'id="gallery-data">(.*?)</script>', made, re.DOTALL)[1]
    assert json.loads(data) == {"text": text} and "\u2028" not in data
    assert "<title>&lt;i&gt;</title>" in made and "<p>body %%DATA%%</p>" in made


def test_a_page_asks_for_nothing_from_outside():
    made = page.fill("t", "", None)
    assert "default-src 'none'" in made
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]', made)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", made)


def test_long_cells_break_and_short_ones_do_not(tmp_path):
    made = document.to_html([document.Table(["a", "b"], [["54.1 ± 1.2", "x" * 60]])], tmp_path)
    assert "<td class=short>54.1 ± 1.2</td>" in made and f"<td>{'x' * 60}</td>" in made
    assert 'role="region" aria-label="Table: Report"' in made


@pytest.fixture(scope="module")
def made_page(tmp_path_factory):
    """A comparison with its figures and its gallery, some of its images left out."""
    root = tmp_path_factory.mktemp("page")
    folders = made_runs.write_methods(
        root, METHODS, seeds=2, pictures=30, num_steps=40, examples=EXAMPLES
    )
    runs = [run_folder.load(folder) for folder in folders]
    whole = gallery.build(runs)
    limit = 0.7 * sum(map(len, whole.data["images"])) / 1e6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot_style, "_DPI", 60)
        # One plot and one with photographs; figures_test.py draws them all.
        chosen = ("Accuracy over steps (Figure 3)", "Two methods and the truth (Figure 4)")
        patch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in chosen})
        report.write_report(folders, root / "out", result_tables.Options(), limit)
    lines = {}
    for title, run in zip(whole.data["methods"], runs[::2], strict=True):
        lines[title] = run.of_split("test")[-1].predictions()
    return root / "out" / "report.html", lines


@pytest.fixture(scope="module")
def chromium():
    program = browsers.executable()
    if program is None:
        pytest.skip("no Chromium here: `apt-get install chromium`, or name one in $CHROMIUM")
    with browsers.start(program) as running:
        yield running


def _thumbs(browser):
    """What stands under the pictures that are shown."""
    return browser.value(
        "[...document.querySelectorAll('#thumbs button')].map((b) => b.ariaLabel"
        " || b.getAttribute('aria-label'))"
    )


def _found(labels):
    return [0.0 if "no box" in label else float(label.split(",")[0][4:]) for label in labels]


def _count(browser):
    return int(browser.value("document.getElementById('status').textContent").split()[0])


def _settles(read, wanted):
    """Waits until `read` gives what is wanted, for as long as the browser is waited for."""
    end = time.monotonic() + browsers.SECONDS
    while (found := read()) != wanted and time.monotonic() < end:
        time.sleep(0.02)
    assert found == wanted


def _overflow(browser):
    """Elements that stick out to the right, those within a scroller of their own left aside."""
    return browser.value(
        "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.wide, pre, svg,"
        " dialog:not([open]), noscript') && e.getBoundingClientRect().right > innerWidth + 0.5)"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_reader_filters_sorts_and_looks(chromium, made_page, size):
    path, lines = made_page
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.size(*size)
    chromium.open(path)
    everything = [line for each in lines.values() for line in each]
    counted = [line["iou"] if line["valid"] else 0.0 for line in everything]
    assert _count(chromium) == len(everything) == 2 * EXAMPLES

    # Worst first, page by page.
    assert _found(_thumbs(chromium)) == pytest.approx(sorted(counted)[:24], abs=0.006)
    chromium.click("#page-on")
    _settles(lambda: _found(_thumbs(chromium)), pytest.approx(sorted(counted)[24:48], abs=0.006))
    chromium.choose("#f-sort", "best")
    assert _found(_thumbs(chromium)) == pytest.approx(sorted(counted)[::-1][:24], abs=0.006)

    # Filters, one after another.
    chromium.choose("#f-method", "1")
    medloc = lines["MedLoc (piecewise), seed 0"]
    assert _count(chromium) == EXAMPLES
    assert all("MedLoc (piecewise)" in label for label in _thumbs(chromium))
    chromium.choose("#f-class", "dark lesion")
    dark = [line for line in medloc if line["label"] == "dark lesion"]
    assert 0 < _count(chromium) == len(dark) < EXAMPLES
    chromium.choose("#f-low", "0.3")
    chromium.choose("#f-high", "0.6")
    between = [line for line in dark if line["valid"] and 0.3 <= round(line["iou"], 4) <= 0.6]
    assert _count(chromium) == len(between)
    chromium.choose("#f-low", "1")
    assert _count(chromium) == 0 and _thumbs(chromium) == []
    chromium.click("#filters button[type=reset]")
    chromium.wait("document.getElementById('status').textContent.startsWith('80 ')")

    assert _overflow(chromium) == []
    assert chromium.value("document.documentElement.scrollWidth") <= size[0]
    assert chromium.errors == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_reader_looks_at_one_answer_and_goes_on_by_the_arrow_keys(chromium, made_page, size):
    path, lines = made_page
    chromium.errors.clear()
    chromium.size(*size)
    chromium.open(path)
    chromium.choose("#f-method", "0")
    chromium.choose("#f-sort", "id")
    chromium.click("#thumbs li:nth-child(3) button")
    ordered = sorted(lines["Fixed 0.5, seed 0"], key=lambda line: line["id"])

    def looked_at():
        return chromium.value("document.getElementById('viewer-title').textContent")

    def said():
        return chromium.value("document.getElementById('viewer-text').textContent")

    chromium.wait("document.getElementById('viewer').open")
    assert (looked_at(), said()) == (ordered[2]["id"], ordered[2]["completion"])
    chromium.press("ArrowRight")
    _settles(looked_at, ordered[3]["id"])
    assert said() == ordered[3]["completion"]
    for _ in range(30):  # beyond the first page of thumbnails
        chromium.press("ArrowRight")
    _settles(looked_at, ordered[33]["id"])
    chromium.press("ArrowLeft")
    _settles(looked_at, ordered[32]["id"])
    drawn = chromium.value(
        "[...document.querySelectorAll('#viewer rect.frame:not(.rim)')].map((r) =>"
        " [r.getAttribute('class'), +r.getAttribute('x'), +r.getAttribute('width')])"
    )
    line = ordered[32]
    x1, _, x2, _ = line["target_boxes_px"][0]
    assert drawn[0] == ["frame true", pytest.approx(x1, abs=0.1), pytest.approx(x2 - x1, abs=0.1)]
    assert len(drawn) == 1 + line["valid"]
    chromium.choose("#viewer-other", "1")
    other = next(p for p in lines["MedLoc (piecewise), seed 0"] if p["id"] == line["id"])
    second = chromium.value("document.getElementById('viewer-second-text').textContent")
    assert second == other["completion"]
    assert _overflow(chromium) == []

    # Back in the grid the focus stands on what was looked at, and arrows move it. A dialog closes
    # first and tells of it afterwards: only then does the page move the focus.
    def focused():
        label = chromium.value("document.activeElement.getAttribute('aria-label')") or ""
        return label.rpartition(" · ")[2]

    chromium.press("Escape")
    chromium.wait("!document.getElementById('viewer').open")
    _settles(focused, line["id"])
    chromium.press("ArrowRight")
    _settles(focused, ordered[33]["id"])
    chromium.press("Enter")
    chromium.wait("document.getElementById('viewer').open")
    _settles(looked_at, ordered[33]["id"])
    assert chromium.errors == []


def test_every_picture_and_field_has_a_name_and_figures_grow(chromium, made_page):
    path, _ = made_page
    chromium.size(*PHONE, dark=True)
    chromium.open(path)
    nameless = chromium.value(
        "[...document.querySelectorAll('img, button, input, select, svg, [role=region]')]"
        ".filter((e) => !e.closest('dialog') && !(e.alt || e.getAttribute('aria-label')"
        " || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 20)"
    filters = chromium.value(
        "['figure.plot img', 'figure.photo img'].map((s) =>"
        " getComputedStyle(document.querySelector(s)).filter)"
    )
    assert "invert" in filters[0] and "invert" not in filters[1]
    # A page that shows figures small lets them be seen large.
    chromium.click("figure .zoom")
    chromium.wait("document.getElementById('enlarged').open")
    shown = "document.querySelector('#enlarged img').getBoundingClientRect().width"
    assert chromium.value(shown) > PHONE[0]
    assert chromium.value("document.documentElement.scrollWidth") <= PHONE[0]


def test_images_beyond_the_limit_are_frames_and_the_page_says_how_many(chromium, made_page):
    path, _ = made_page
    chromium.size(*DESKTOP)
    chromium.open(path)
    note = chromium.value("document.querySelector('#gallery .note').textContent")
    left_out = int(re.search(r"(\d+) of 40 examples are shown without their image", note)[1])
    chromium.choose("#f-method", "0")
    holes = chromium.value("document.querySelectorAll('#thumbs .hole').length")
    chromium.click("#page-on")
    chromium.wait("document.querySelectorAll('#thumbs li').length === 16")
    holes += chromium.value("document.querySelectorAll('#thumbs .hole').length")
    assert holes == left_out > 0


def test_the_driver_sees_errors_and_what_sticks_out(chromium, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body style='margin:0'><div id=wide style='width:2000px'>x</div>"
        "<script>setTimeout(() => missing.call()); console.error('oh')</script>"
    )
    chromium.errors.clear()
    chromium.size(*PHONE)
    chromium.open(bad)

    def seen():
        chromium.value("0")  # what the browser told meanwhile is read with the answer
        return [any(word in error for error in chromium.errors) for word in ("missing", "oh")]

    _settles(seen, [True, True])
    assert any("wide" in element for element in _overflow(chromium))
