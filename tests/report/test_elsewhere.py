"""Other domains and lm-eval's tasks on a run's page."""

from pathlib import Path

from runs import measured_elsewhere, text_run

from lorafit.report.elsewhere import elsewhere_section, suite_section
from lorafit.report.page import page
from lorafit.report.results import results_of


def test_each_metric_stands_here_and_elsewhere(tmp_path: Path):
    run = measured_elsewhere(tmp_path / "run")
    section = elsewhere_section(run, results_of(run))
    assert section is not None
    worse, same, figure, table = section.blocks
    assert worse.text == (
        "It is worse on instructions.jsonl (1,200 rows): loss 2.000 before, 2.200 after, +0.200 "
        "(95 % interval +0.100 to +0.300)."
    )
    assert same.text.startswith("No difference beyond chance on /another")
    names = [row[0].split("\n") for row in table.rows]
    assert [name for name, _ in names] == ["held-out rows", *run.also] * 2
    assert [words for _, words in names[:3]] == ["loss, better", "loss, worse", "loss, no difference"]
    loss = run.results["loss"]
    assert table.rows[0][1:3] == [f"{loss['base']:.3f}", f"{loss['tuned']:.3f}"]
    assert table.rows[1][3] == "+0.200\n+0.100 to +0.300"
    assert [row[0] for row in figure.table.rows] == ["held-out rows", *run.also]


def test_tasks_with_and_without_an_interval(tmp_path: Path):
    section = suite_section(measured_elsewhere(tmp_path / "run").suite)
    assert section is not None
    [table] = section.blocks
    assert table.rows == [
        ["hellaswag\nacc, 100 rows", "0.310", "0.350", "+0.040\n+0.010 to +0.070"],
        ["wikitext\nbyte_perplexity, 100 rows", "0.310", "0.350", "+0.040\nno interval"],
    ]
    assert "lm-eval 0.4.13" in table.caption


def test_a_run_without_them_has_no_such_section(tmp_path: Path):
    run = text_run(tmp_path / "run")
    assert elsewhere_section(run, results_of(run)) is None and suite_section(run.suite) is None
    text = page(run)
    assert 'id="elsewhere"' not in text and 'id="suite"' not in text
