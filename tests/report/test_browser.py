"""The page in a headless Chromium: drawn, legible, reachable, live."""

import threading

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import DESKTOP, FIT, PHONE, opened
from playwright.sync_api import expect
from runs import class_run, log, measured_elsewhere, start, text_run

from lorafit.report.page import write_report
from lorafit.report.several import write_comparison
from lorafit.report.watch import PageServer


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, str]:
    """Addresses of a page of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    text, classes, begun = text_run(folder / "text"), class_run(folder / "classes"), start(folder / "begun")
    log(begun, last=9)
    begun.update(state="failed", error="ValueError: it broke")
    pages = {"text": write_report(text), "classes": write_report(classes), "begun": write_report(begun)}
    pages["elsewhere"] = write_report(measured_elsewhere(folder / "elsewhere"))
    pages["several"] = write_comparison([text, text_run(folder / "other", learning_rate=3e-4)], folder / "several.html")
    return {name: file.as_uri() for name, file in pages.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("kind", ["text", "elsewhere", "classes", "begun", "several"])
def test_no_accessibility_rule_is_broken_and_nothing_runs_off_the_side(browser, reports, kind, size, scheme):
    with opened(browser, reports[kind], size, scheme) as page:
        assert page.evaluate(FIT)
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true })")
        assert page.evaluate(FIT)
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_figure_is_drawn_once_and_legibly(browser, reports, size):
    with opened(browser, reports["text"], size) as page:
        drawn = page.locator("figure svg:visible")
        assert drawn.count() == page.locator("figure").count() == 9
        for i in range(9):
            box = drawn.nth(i).bounding_box()
            assert box["width"] > 250 and box["height"] > 80
            assert drawn.nth(i).locator("path").count() > 3
        smallest = page.evaluate("""() => Math.min(...[...document.querySelectorAll('figure svg text')]
            .map((text) => text.getBoundingClientRect()).filter((box) => box.width)
            .map((box) => Math.min(box.height, 99)))""")
        assert smallest >= 9
        marked = page.evaluate("getComputedStyle(document.querySelector('#loss svg [id*=line2d_] path')).stroke")
        assert marked.startswith("rgb")  # the variables have values


def test_dark_drawings_have_the_dark_colours(browser, reports):
    colours = []
    for scheme in ("light", "dark"):
        with opened(browser, reports["text"], DESKTOP, scheme) as page:
            colours.append(
                page.evaluate("""() => [getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector('#loss .wide svg text')).fill]""")
            )
    assert colours == [["rgb(253, 253, 252)", "rgb(86, 93, 101)"], ["rgb(20, 23, 26)", "rgb(163, 171, 179)"]]


def test_labels_of_a_figure_do_not_overlap(browser, reports):
    overlaps = """() => [...document.querySelectorAll('figure svg')].filter((svg) => svg.getBoundingClientRect().width)
        .flatMap((svg) => {
            const boxes = [...svg.querySelectorAll('text')].map((text) =>
                [text.textContent, text.getBoundingClientRect()]);
            return boxes.flatMap(([a, x], i) => boxes.slice(i + 1).filter(([b, y]) =>
                x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 3 && y.top < x.bottom - 3)
                .map(([b]) => `${svg.getAttribute('aria-label').slice(0, 30)}: ${a} and ${b}`));
        })"""
    for kind in ("text", "elsewhere", "classes", "several"):
        for size in (PHONE, DESKTOP):
            with opened(browser, reports[kind], size) as page:
                assert page.evaluate(overlaps) == []


def test_the_keyboard_reaches_and_opens_all(browser, reports):
    with opened(browser, reports["text"]) as page:
        wanted = page.locator("nav a, summary").count()
        seen = set()
        for _ in range(3 * wanted):
            page.keyboard.press("Tab")
            seen.add(
                page.evaluate("""() => { const now = document.activeElement;
                return now.matches('nav a, summary') ? (now.getAttribute('href') || now.parentElement.id) : '' }""")
            )
        closed_inside = page.locator("details:not([open]) summary").count() - page.locator("summary:visible").count()
        assert len(seen - {""}) == wanted - closed_inside
        page.locator("#fold-all-settings > summary").focus()
        page.keyboard.press("Enter")
        assert page.locator("#fold-all-settings table").is_visible()
        page.locator("nav a", has_text="Settings").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#setup h2")).to_be_in_viewport()


def test_a_long_answer_is_scrolled_and_printed_whole(browser, reports):
    with opened(browser, reports["text"]) as page:
        page.locator("#fold-more-samples > summary").click()
        long = page.locator("dd.long")
        assert long.count() == 1 and long.get_attribute("tabindex") == "0"
        assert long.bounding_box()["height"] <= 320 < long.evaluate("(part) => part.scrollHeight")
        page.emulate_media(media="print")
        assert long.bounding_box()["height"] > 1000


def test_a_script_in_a_sample_does_not_run(browser, reports):
    with opened(browser, reports["text"]) as page:
        page.on("dialog", lambda dialog: pytest.fail("a sample's script ran"))
        assert "Say <script>alert(1)</script>" in page.locator("#samples").inner_text()


def test_it_prints_in_black_on_white_with_its_figures(browser, reports):
    with opened(browser, reports["text"], PHONE, "dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator(".wide svg:visible").count() == 3 and page.locator("nav:visible").count() == 0
        assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_page_follows_a_run_that_trains(browser, tmp_path):
    run = start(tmp_path / "run")
    log(run, last=8)
    with PageServer(run) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with opened(browser, server.url, PHONE) as page:
            assert page.locator("h1").inner_text() == "Training: step 8 of 40"
            page.locator("#loss summary").click()
            page.locator("#setup").scroll_into_view_if_needed()
            page.evaluate("document.querySelector('#setup').marked = true")  # what does not change is left alone
            before = page.locator("#setup h2").bounding_box()["y"]
            log(run, first=9, last=30)
            expect(page.locator("h1")).to_have_text("Training: step 30 of 40", timeout=20_000)
            assert page.title() == "run: Training: step 30 of 40"
            assert page.locator("#loss details").get_attribute("open") is not None
            assert page.locator("#loss tbody tr").count() == 3
            assert page.evaluate("document.querySelector('#setup').marked")
            assert page.locator("#setup h2").bounding_box()["y"] == pytest.approx(before, abs=2)
            run.update(state="interrupted")
            expect(page.locator("h1")).to_have_text("Interrupted at step 30 of 40", timeout=20_000)
        server.shutdown()
