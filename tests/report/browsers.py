"""A headless Chromium, where the machine has one, and pages opened in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESKTOP = (360, 740), (1280, 900)
FIT = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """The browser; tests that ask for it skip without one. Of a module, as two folders have this fixture."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # ms; 5 s by itself, which a busy machine needs
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, address: str, size=DESKTOP, scheme: str = "light", expected: str = "") -> Iterator:
    """A page that has loaded; a request to elsewhere or a console error (but one with `expected`) fails the test."""
    problems = []
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(address) else None)
    page.goto(address)
    yield page
    context.close()
    assert [problem for problem in problems if not expected or expected not in problem] == []
