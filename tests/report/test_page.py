"""What the page says, from runs written by hand."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from runs import CLASSES, SAID, STEPS, TRUTH, class_run, log, measure, start, text_run, write
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from lorafit.errors import RunError
from lorafit.evaluate.verdict import RISE as RISE_OF_THE_VERDICT
from lorafit.metrics import Scores
from lorafit.report.classes import _largest, confusion, precision_recall_f1
from lorafit.report.history import RISE, Curve, History
from lorafit.report.layers import relative_updates, short_names
from lorafit.report.page import page, page_of, render, write_report
from lorafit.report.samples import marked, sample_view
from lorafit.report.setup import changed_settings, typed
from lorafit.report.several import page_of_several
from lorafit.run import Run


class Reader(HTMLParser):
    """All tags with their attributes, and the text of each table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.words, self._cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._cell = tag
        elif tag == "br" and self._cell:
            self.tables[-1][-1][-1] += "|"

    def handle_endtag(self, tag):
        if tag == self._cell:
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._cell:
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(run):
    return Reader(page(run))


def test_the_headline_says_what_came_out_with_its_interval(tmp_path):
    run = text_run(tmp_path / "run")
    loss = run.results["loss"]
    text = read(run).text
    low, high = loss["interval"]
    assert "Better than the base model" in text
    assert f"Loss on 20 held-out rows was {loss['base']:.3f} before and is {loss['tuned']:.3f} after" in text
    assert f"{loss['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})" in text
    assert "It overfitted: after step 24 the validation loss rose from 1.100 to 1.500" in text
    assert "peak memory 2.00 GB (2.50 planned)" in text and "80 trained on, 20 held out" in text


@pytest.mark.parametrize(
    ("base", "tuned", "words"),
    [((2.0, 0.1), (2.5, 0.1), "Worse than the base model"), ((2.0, 0.5), (2.0, 0.5), "No difference beyond chance")],
)
def test_no_gain_is_said_as_plainly(tmp_path, base, tuned, words):
    run, rng = text_run(tmp_path / "run"), np.random.default_rng(3)
    found = Scores.of_sums(rng.normal(*base, 40), rng.normal(*tuned, 40)).measured()
    value = {"base": found.base, "tuned": found.tuned, "difference": found.difference, "interval": list(found.interval)}
    write(run, "eval.json", {"loss": value})
    assert page_of(run).headline == words


def test_an_answers_metric_decides_before_the_loss(tmp_path):
    run = text_run(tmp_path / "run")
    worse = {"base": 0.5, "tuned": 0.25, "difference": -0.25, "interval": [-0.3, -0.2]}
    write(run, "eval.json", {**run.results, "exact_match": worse})
    found = page_of(run)
    assert found.headline == "Worse than the base model"
    assert "50.0 % before and is 25.0 % after: -25.0 points (95 % interval -30.0 to -20.0)" in found.lead


def test_a_classifier_no_better_than_the_commonest_class_is_no_success(tmp_path):
    run = class_run(tmp_path / "run")
    assert page_of(run).headline == "Better than the base model"
    samples = [{"prompt": "?", "reference": truth, "base": "ABBR", "tuned": "DESC"} for truth in TRUTH]
    (run.directory / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    assert page_of(run).headline == "No better than the commonest class"
    assert "Always answering DESC gives accuracy 50.0 %" in page_of(run).lead


def test_every_number_of_the_results_is_in_a_table(tmp_path):
    run = text_run(tmp_path / "run")
    tables = read(run).tables
    loss, scores = run.results["loss"], Scores.from_dict(run.scored_rows["loss"])
    low, high = loss["interval"]
    row = [
        "loss|better",
        f"{loss['base']:.3f}",
        f"{loss['tuned']:.3f}",
        f"{loss['difference']:+.3f}|{low:+.3f} to {high:+.3f}",
    ]
    assert row in tables[0]
    (low, high), _ = scores.own_intervals(seed=42)
    assert ["loss, base", f"{loss['base']:.3f}", f"{low:.3f} to {high:.3f}"] in tables[1]


def test_the_loss_table_has_each_evaluation_beside_the_training_loss_before_it(tmp_path):
    run = text_run(tmp_path / "run")
    table = next(table for table in read(run).tables if table[0] == ["step", "training", "validation"])
    mean = np.mean([3 / step**0.5 for step in range(17, 25)])
    assert table[3] == ["24", f"{mean:.4f}", "1.1000"] and len(table) == 6


def test_every_figure_is_an_image_with_words_and_has_its_numbers_in_a_table(tmp_path):
    reader = read(text_run(tmp_path / "run"))
    figures = [tag for tag, _ in reader.tags].count("figure")
    drawings = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert figures == 9 and len(drawings) == 12  # three of them for two widths
    assert all(drawing["role"] == "img" and len(drawing["aria-label"]) > 20 for drawing in drawings)
    text = page(Run(tmp_path / "run"))
    assert all("<table" in part.split("</figure>")[0] for part in text.split("<figure>")[1:])
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(#|href="#)([^)"]+)', text):
        assert reference in ids


def test_colours_come_from_the_page(tmp_path):
    text = page(text_run(tmp_path / "run"))
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--accent)" in drawings and "var(--neutral)" in drawings and "var(--muted)" in drawings
    assert not re.search(r"(?:fill|stroke): #", drawings) and "font-family" not in drawings


def test_what_people_and_models_wrote_stays_text(tmp_path):
    run = text_run(tmp_path / "run", output_dir=str(tmp_path / "<img src=x onerror=alert(1)>"))
    run.update(error="<script>alert(2)</script>", state="failed")
    reader = read(run)
    assert [tag for tag, _ in reader.tags if tag in ("script", "img", "iframe", "object", "link", "base")] == ["link"]
    assert "Say <script>alert(1)</script>" in reader.text and "<script>alert(2)</script>" in reader.text
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    run = text_run(tmp_path / "run")
    for live in (False, True):
        text = page(run, live=live)
        reader = Reader(text)
        [policy] = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ") and "http" not in policy and "script-src *" not in policy
        assert ("script-src" in policy) == live
        addresses = [
            a[name] for _, a in reader.tags for name in ("src", "href", "xlink:href", "srcset", "action") if name in a
        ]
        assert all(address.startswith("#") or address == "data:," for address in addresses)
        assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_a_run_at_any_point_has_a_page(tmp_path):
    run = start(tmp_path / "run")
    (run.adapter / "adapter_model.safetensors").unlink()
    assert page_of(run).headline == f"Training: step 0 of {STEPS}" and "No step has been logged yet" in read(run).text
    log(run, last=1)
    assert page_of(run).headline == f"Training: step 1 of {STEPS}"
    log(run, first=2, last=20)
    found = page_of(run)
    assert found.headline == f"Training: step 20 of {STEPS}"
    assert found.lead == "Training loss 0.671; validation loss 1.400, the best so far 1.400 at step 16."
    assert [section.id for section in found.sections] == ["loss", "training", "data", "setup"]
    run.update(state="interrupted", error=None)
    assert f"Interrupted at step 20 of {STEPS}" in read(run).text and run.resume_command in read(run).text
    run.update(state="failed", error="ValueError: it broke")
    text = read(run).text
    assert f"Failed at step 20 of {STEPS}" in text and "ValueError: it broke" in text and run.resume_command in text
    run.update(state="finished", error=None)
    assert page_of(run).headline == "Trained, not measured yet" and f"lorafit eval {run.directory}" in read(run).text


def test_files_that_older_runs_lack_are_named(tmp_path):
    run = text_run(tmp_path / "run")
    for name in ("eval_rows.json", "updates.json"):
        (run.directory / name).unlink()
    old = run.record["data"]["summary"]
    del old["length_histogram"], old["trained_share_histogram"]
    run.update(data={"rows_sha256": "0", "summary": old}, plan=None)
    text = read(run).text
    assert f"need eval_rows.json: lorafit eval {run.directory}" in text and "(updates.json)" in text
    assert "started before histograms were kept" in text and "Loss on the held-out rows was" in text


def test_the_matrix_and_each_class_are_scikit_learns(tmp_path):
    matrix = confusion(TRUTH, SAID, CLASSES)
    np.testing.assert_array_equal(matrix, confusion_matrix(TRUTH, SAID, labels=CLASSES))
    theirs = precision_recall_fscore_support(TRUTH, SAID, labels=CLASSES, zero_division=0)
    for mine, other in zip(precision_recall_f1(matrix), theirs, strict=False):
        np.testing.assert_allclose(mine, other)
    reader = read(class_run(tmp_path / "run"))
    assert ["DESC", "0", "9", "1"] in next(table for table in reader.tables if table[0] == ["class", *CLASSES])
    assert ["DESC", "26", "10", "81.8", "90.0", "85.7"] in next(
        table for table in reader.tables if table[0][-1] == "F1"
    )
    assert "Always answering DESC gives accuracy 50.0 %, the tuned model 85.0 %." in reader.text
    wrong = next(table for table in reader.tables if table[0] == ["text", "class", "tuned says"])
    assert ["Question 0?", "ABBR", "DESC"] in wrong and len(wrong) == 4


def test_many_classes_are_shown_with_the_rarest_put_together():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (30, 30)) + np.diag(np.arange(30) * 10)
    names, small = _largest([str(i) for i in range(30)], matrix)
    assert names == [*(str(i) for i in range(11, 30)), "others"]
    assert (
        small.sum() == matrix.sum()
        and small[-1, -1] == matrix[:11, :11].sum()
        and small[0, -1] == matrix[11, :11].sum()
    )


def test_differences_are_marked_and_the_answer_stays_whole():
    pieces = list(marked("the dog sat here", "the cat sat here"))
    assert pieces == [("same", "the "), ("missing", "cat"), ("extra", "dog"), ("same", " sat here")]
    for answer, reference in (("a b c d x", "a b c d"), ("one  two\nthree", "one two three four"), ("x", "")):
        assert "".join(text for kind, text in marked(answer, reference) if kind != "missing") == answer
    assert list(marked("quite another answer", "nothing of it!")) == [("same", "quite another answer")]
    long = "word " * 2000
    assert list(marked(long, long + "more")) == [("same", long)]


def test_updates_are_rows_of_layers_and_columns_of_kinds():
    layers = [
        {"module": "enc.block.0.attn.q", "update_norm": 3.0, "weight_norm": 10.0},
        {"module": "enc.block.1.mlp.experts.0.up", "update_norm": 3.0, "weight_norm": 6.0},
        {"module": "enc.block.1.mlp.experts.1.up", "update_norm": 4.0, "weight_norm": 8.0},
        {"module": "head", "update_norm": 1.0, "weight_norm": 0.0},
    ]
    cells, single = relative_updates(layers)
    assert cells == {("enc.block", 0): {"attn.q": 0.3}, ("enc.block", 1): {"mlp.experts.*.up": 0.5}}
    assert single == {"head": 0.0}
    assert short_names(["attention.output.dense", "output.dense", "attention.q"]) == {
        "attention.output.dense": "attention.output.dense",
        "output.dense": "output.dense",
        "attention.q": "q",
    }


def test_a_long_curve_is_thinned_to_means():
    steps, values = np.arange(1, 100_001), np.random.default_rng(0).normal(size=100_000)
    thin = Curve(steps, values).thinned(300)
    assert len(thin) == 300 and thin.steps[-1] == 100_000
    assert thin.values[0] == pytest.approx(values[:333].mean()) and thin.values.mean() == pytest.approx(
        values.mean(), abs=1e-4
    )
    assert Curve(steps, values).every(40).steps[[0, -1]].tolist() == [1, 100_000]


def test_a_run_of_100_000_steps_is_a_small_page(tmp_path):
    run = text_run(tmp_path / "run")
    short = len(page(run))
    line = '{"step": %d, "epoch": 1.0, "loss": %.4f, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 1, ' + (
        '"tokens_per_second": 2.0, "peak_memory_bytes": 3}\n{"step": %d, "epoch": 1.0, "eval_loss": %.4f}\n'
    )
    (run.directory / "metrics.jsonl").write_text("".join(line % (i, 1 / i, i, 2 / i) for i in range(1, 100_001)))
    assert len(page(run)) < short + 150_000


def test_overfitting_is_shaded_as_the_verdict_judges_it():
    assert RISE == RISE_OF_THE_VERDICT
    history = History.of([{"step": i, "eval_loss": loss} for i, loss in enumerate((2.0, 1.0, 1.04))])
    assert history.overfitted is None and history.best == (1, 1.0)
    history = History.of([{"step": i, "eval_loss": loss} for i, loss in enumerate((2.0, 1.0, 1.06))])
    assert history.overfitted == (1, 2)
    assert History.of([]).best is None


def test_settings_that_differ_and_the_commands(tmp_path):
    run = text_run(tmp_path / "run", learning_rate=3e-3)
    assert changed_settings(run.recipe) == ["model.name", "data.train_files", "train.learning_rate", "train.max_steps"]
    reader = read(run)
    assert ["train.learning_rate", "0.003", "0.0002"] in next(
        table for table in reader.tables if len(table[0]) == 3 and table[0][0] == "setting"
    )
    assert f"lorafit train {run.directory}/recipe.yaml --output-dir {run.directory}-again" in reader.text
    assert typed("/usr/bin/lorafit train --data 'a b.jsonl'") == "lorafit train --data 'a b.jsonl'"
    assert typed("/x/lorafit/__main__.py demo") == "lorafit demo"


def test_metrics_may_be_called_anything(tmp_path):
    run = text_run(tmp_path / "run")
    value = {"base": 0.1, "tuned": 0.2, "difference": 0.1, "interval": [0.05, 0.15]}
    write(run, "eval.json", {"$\\frac": value, "<b>": value})
    scores = Scores.of_sums(np.zeros(4), np.ones(4)).to_dict()
    write(run, "eval_rows.json", {"rows_sha256": "1", "metrics": {"$\\frac": scores, "<b>": scores}})
    text = read(run).text
    assert "$\\frac" in text and "<b>" in text


def test_no_torch_is_loaded(tmp_path):
    run = class_run(tmp_path / "run")
    code = (
        "import sys; from lorafit.run import Run; from lorafit.report.page import write_report; "
        "write_report(Run.open(sys.argv[1])); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code, run.directory], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert (run.directory / "report.html").read_text().startswith("<!doctype html>")


def test_the_page_is_whole_or_not_there(tmp_path):
    run = text_run(tmp_path / "run")
    file = write_report(run, tmp_path / "page.html")
    assert file == tmp_path / "page.html" and file.read_text().rstrip().endswith("</html>")
    (run.directory / "eval.json").write_text("{")
    before = file.read_bytes()
    with pytest.raises(RunError, match=r"eval\.json cannot be read"):
        write_report(run, file)
    assert file.read_bytes() == before
    shutil.rmtree(run.directory)


def test_the_page_of_several_runs_says_which_is_better(tmp_path):
    better, worse = text_run(tmp_path / "a"), text_run(tmp_path / "b", learning_rate=3e-3)
    rows = worse.scored_rows
    tuned = np.array(rows["loss"]["tuned"]) + np.array([0.5, 0.0])
    scores = Scores(np.array(rows["loss"]["base"]), tuned)
    measure(worse, {"loss": scores}, worse.samples)
    found = page_of_several([better, worse])
    assert found.headline == "a is better" and "+0.500" in found.lead.replace("-0.500", "+0.500")
    reader = Reader(render(found))
    pair = next(table for table in reader.tables if table[0][0] == "runs")[1]
    assert pair[0] == "b against a|worse" and pair[1].startswith("+0.500|") and pair[2] == "< 0.001"
    assert next(row for table in reader.tables for row in table if row[0] == "train.learning_rate")[1:] == [
        "0.0002",
        "0.003",
    ]
    cost = next(row for table in reader.tables for row in table if row[0] == "a|finished")
    assert cost[1:6] == ["100 s", "4,000", "44", "2.00 GB", "1,000"] or cost[1] == "2 min"
    assert "Validation loss by step of each run" in render(found)


def test_runs_that_are_equal_are_said_to_be(tmp_path):
    found = page_of_several([text_run(tmp_path / "a"), text_run(tmp_path / "b"), start(tmp_path / "c")])
    assert found.headline == "No difference beyond chance" and found.tone == ""
    assert any("c was not measured" in note.text for note in found.opening)


def test_many_references_are_folded():
    references = [f"reference {i}" for i in range(43)]
    sample = {"prompt": "?", "reference": references[0], "base": "x", "tuned": references[40], "references": references}
    view = sample_view(sample)
    assert [answer.name for answer in view.answers] == ["reference", "or", "or", "base", "tuned"]
    assert view.folded == references[3:]
    assert view.answers[-1].tag == "equal"  # by one that is folded
