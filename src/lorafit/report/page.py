"""The report of one run as a page, and the page as HTML."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

import lorafit
from lorafit.files import write_atomically
from lorafit.report.blocks import Page, Section
from lorafit.report.curves import loss_section, progress_section
from lorafit.report.elsewhere import elsewhere_section, suite_section
from lorafit.report.headline import headline, opening, when
from lorafit.report.history import History
from lorafit.report.labels import labels_section
from lorafit.report.layers import layers_section
from lorafit.report.pictures import pictures_section
from lorafit.report.results import main_result, results_of, results_section
from lorafit.report.rows import data_section
from lorafit.report.samples import samples_section
from lorafit.report.setup import setup_section
from lorafit.run import Run

FILE = "report.html"


def write_report(run: Run, file: Path | None = None) -> Path:
    """Write a run's page, beside its other files if not told where; returns where."""
    file = file or run.directory / FILE
    write_atomically(file, page(run))
    return file


def page(run: Run, *, live: bool = False) -> str:
    """A run's page as HTML, whole in itself.

    Args:
        run: finished or not; files that it lacks are named where they would show.
        live: with a script that asks the server it came from for a newer one.
    """
    return render(page_of(run), live=live)


UNITS = {
    "classification": "nats a row",
    "token_classification": "nats a word",
    "text_to_image": "squared error",
}
"""What a loss is, where it is not nats a token."""


def page_of(run: Run) -> Page:
    """What a run's page says."""
    is_text = run.recipe.task != "text_to_image"
    history, samples, results = History.of(run.metrics()), run.samples if is_text else [], results_of(run)
    main, labels = main_result(results), labels_section(run, samples)
    beside = labels[1] if labels and main else None
    words, lead, tone = headline(run, history, main, beside)
    sections: list[Section | None] = [
        results_section(results, run),
        elsewhere_section(run, results),
        suite_section(run.suite),
        loss_section(history, UNITS.get(run.recipe.task, "nats a token")),
        pictures_section(run) or (labels[0] if labels else samples_section(samples)),
        layers_section(run.updates, run.has_adapter and run.record["state"] == "finished"),
        progress_section(history),
        data_section(run.record["data"]["summary"]),
        setup_section(run),
    ]
    name = run.directory.resolve().name
    return Page(
        title=f"{name}: {words}",
        eyebrow=f"{name} · {when(run)}",
        headline=words,
        lead=lead,
        tone=tone,
        opening=opening(run, history),
        sections=[section for section in sections if section is not None],
        footer=f"Written by lorafit {lorafit.__version__} from the files in {run.directory.resolve()}.",
    )


def render(page: Page, *, live: bool = False) -> str:
    """A page as HTML: nothing it holds is loaded from elsewhere, and its policy forbids that."""
    script = _asset("live.js") if live else None
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'; connect-src 'self'"
    text = _template().render(page=page, policy=policy, style=_asset("style.css"), script=script).lstrip()
    return text.encode("utf-8", "replace").decode("utf-8")  # half characters, which a model's answer may hold


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lorafit.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["hash"] = lambda text: hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    return environment.get_template("page.html.j2")


@cache
def _asset(name: str) -> Markup:
    """A file of this package, trusted as it is."""
    return Markup((files("lorafit.report") / name).read_text(encoding="utf-8"))
