import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import class_scores, evaluated, language_scores, small_run

from lorafit.errors import RunError
from lorafit.metrics import Scores
from lorafit.report.comparison import Comparison, compare_runs
from lorafit.report.run_figures import main_metric, names_of, open_runs
from lorafit.run import Run


def compared(*runs: Run, by: str | None = None) -> Comparison:
    return compare_runs(runs, by, samples=2000)


def test_the_better_of_two_is_named_with_its_interval(tmp_path: Path):
    weak = small_run(tmp_path / "weak", language_scores(1.0, seed=1))
    strong = small_run(tmp_path / "strong", language_scores(1.3, seed=2))
    found = compared(weak, strong)
    (pair,) = found.pairs
    first, second = (run.scores["loss"].tuned for run in found.runs)
    loss = pair.metrics["loss"]
    assert loss.difference == pytest.approx((second[:, 0].sum() - first[:, 0].sum()) / first[:, 1].sum())
    assert loss.interval[0] < loss.difference < loss.interval[1] < 0 and loss.p < 0.01
    assert (found.by, found.which.kind, found.which.best, found.which.cheapest) == ("loss", "better", (1,), None)
    value = {run.name: f"{run.metrics['loss'].tuned:.3f}" for run in found.runs}
    assert found.which.sentence == (
        f"strong is better than weak by loss on 60 rows: {value['strong']} against {value['weak']} "
        f"({loss.difference:+.3f}, 95 % interval {loss.interval[0]:+.3f} to {loss.interval[1]:+.3f})."
    )
    turned = compared(strong, weak)
    assert turned.which.best == (0,) and turned.which.sentence == found.which.sentence


def test_pairing_finds_what_two_intervals_hide(tmp_path: Path):
    """How hard a row is makes each run's own interval wide; the pair's difference is free of it."""
    found = compared(
        *(small_run(tmp_path / f"{gain}", language_scores(gain, seed=int(10 * gain))) for gain in (1.0, 1.2))
    )
    first, second = (_own(run.scores["loss"].tuned) for run in found.runs)
    assert first[0] < second[1] and found.runs[1].metrics["loss"].tuned > first[0]  # each within the other's interval
    assert found.which.kind == "better" and found.which.best == (1,)


def test_equal_runs_are_not_told_apart_and_the_cheapest_is_taken(tmp_path: Path):
    dear = small_run(tmp_path / "dear", class_scores(0.9, seed=1), seconds=80, sets=["task=classification"])
    cheap = small_run(tmp_path / "cheap", class_scores(0.9, seed=2), seconds=42, sets=["task=classification"])
    found = compared(dear, cheap)
    assert (found.by, found.which.kind, found.which.cheapest) == ("accuracy", "no difference", 1)
    assert set(found.which.best) == {0, 1}
    assert found.which.sentence.startswith("No difference beyond chance by accuracy on 200 rows: ")
    assert found.which.sentence.endswith("Among equals take the cheapest: cheap, 42 s against 80 s.")
    twin = small_run(tmp_path / "twin", class_scores(0.9, seed=1), seconds=42, sets=["task=classification"])
    assert "+0.0 points, 95 % interval +0.0 to +0.0." in compared(dear, twin).which.sentence  # no negative zeros


def test_times_of_different_devices_are_no_cost(tmp_path: Path):
    runs = [
        small_run(tmp_path / name, language_scores(seed=seed), seconds=seconds, sets=[f"lora.r={r}"], plan=plan)
        for name, seed, seconds, r, plan in [("a", 1, 50, 8, {"device": "one"}), ("b", 2, 10, 16, {"device": "two"})]
    ]
    found = compared(*runs)
    assert found.which.cheapest == 0 and "8,000 trained parameters against 16,000" in found.which.sentence
    assert "Times and memory are of different devices: one, two." in found.notes


def test_of_many_runs_the_best_group_is_named_and_pairs_are_corrected(tmp_path: Path):
    gains = {"a": 1.0, "b": 1.21, "c": 1.2, "d": 0.8}
    runs = [small_run(tmp_path / name, language_scores(gain, seed=i)) for i, (name, gain) in enumerate(gains.items())]
    found = compared(*runs)
    assert len(found.judged_pairs) == 6
    assert {pair.metrics["loss"].level for pair in found.pairs} == {0.05 / 6}
    assert found.which.kind == "several best" and set(found.which.best) == {1, 2}
    assert "Worse beyond chance: a and d." in found.which.sentence
    wide, narrow = found.pairs[0].metrics["loss"].interval, compared(*runs[:2]).pairs[0].metrics["loss"].interval
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    alone = compared(runs[0], runs[1], runs[3])
    assert alone.which.kind == "better" and alone.which.best == (1,)
    assert "It is better than each of the other 2 beyond chance." in alone.which.sentence


def test_runs_of_other_rows_are_set_aside(tmp_path: Path):
    runs = [small_run(tmp_path / name, language_scores(gain, seed=i))
            for i, (name, gain) in enumerate([("a", 1.0), ("b", 1.5)])]  # fmt: skip
    other = small_run(tmp_path / "other", language_scores(3, seed=5), rows_sha256="c" * 64)
    found = compared(*runs, other)
    assert found.which.best == (1,)
    assert "other is not judged beside a: they were measured on different rows." in found.which.sentence
    assert found.pairs[0].metrics["loss"].level == 0.05  # one pair was looked at
    apart = compared(runs[0], other)
    assert (apart.which.kind, apart.which.best) == ("not compared", ())
    assert "they were measured on different rows" in apart.which.sentence
    value = apart.runs[1].metrics["loss"].tuned
    said = re.search(rf"other {value:.3f} \(95 % interval (\S+) to (\S+)\)", apart.which.sentence)
    assert said is not None
    assert [float(end) for end in said.groups()] == pytest.approx(_own(apart.runs[1].scores["loss"].tuned), abs=0.02)


def _own(statistics: np.ndarray) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(0, len(statistics), (20_000, len(statistics)))
    low, high = np.percentile(statistics[drawn, 0].sum(axis=1) / statistics[drawn, 1].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"rows_sha256": "c" * 64}, "measured on different rows"),
        ({"scores": language_scores(rows=59)}, "measured on 60 and 59 rows"),
        ({"scores": language_scores(tokens_seed=1)}, "other tokens to them (another tokenizer or template)"),
    ],
)
def test_why_two_runs_cannot_be_compared(tmp_path: Path, second: dict, words: str):
    first = small_run(tmp_path / "a", language_scores())
    found = compared(first, small_run(tmp_path / "b", **{"scores": language_scores(), **second}))
    assert words in found.pairs[0].apart["loss"] and words in found.pairs[0].apart["perplexity"]
    assert found.which.kind == "not compared" and words in found.which.sentence


def test_another_tokenizer_leaves_the_answers_comparable(tmp_path: Path):
    rng, runs = np.random.default_rng(0), []
    for name, share, tokens_seed in [("a", 0.3, 0), ("b", 0.9, 1)]:
        exact = Scores.of_sums(np.zeros(60), rng.random(60) < share)
        runs.append(small_run(tmp_path / name, {**language_scores(tokens_seed=tokens_seed), "exact_match": exact}))
    found = compared(*runs)
    assert set(found.pairs[0].apart) == {"loss", "perplexity"} and set(found.pairs[0].metrics) == {"exact_match"}
    assert (found.by, found.which.kind, found.which.best) == ("exact_match", "better", (1,))


def test_answers_to_other_prompts_are_not_paired(tmp_path: Path):
    scores = {**language_scores(), "exact_match": Scores.of_sums(np.zeros(4), np.ones(4))}
    rows = dict.fromkeys(scores, "a" * 64)
    runs = [small_run(tmp_path / name, scores, rows_sha256={**rows, "exact_match": prompts * 64})
            for name, prompts in [("a", "d"), ("b", "d"), ("c", "e")]]  # fmt: skip
    first, second, _ = compared(*runs).pairs
    assert "exact_match" in first.metrics
    assert second.apart == {"exact_match": "they were measured on different rows"} and "loss" in second.metrics


def test_runs_of_older_versions_are_shown_and_not_judged(tmp_path: Path):
    runs = [small_run(tmp_path / name, language_scores()) for name in "ab"]
    for name in ("eval_rows.json", "samples.jsonl"):
        (tmp_path / "b" / name).unlink()
    for key in ("plan", "figures", "parameters"):
        runs[1].update(**{key: None})
    shutil.rmtree(runs[1].adapter)
    found = compared(*runs)
    assert found.pairs[0].apart["loss"] == "b kept no figures of single rows: lorafit eval writes them"
    assert found.runs[1].metrics["loss"].tuned and found.runs[1].cost.adapter_bytes is None
    (tmp_path / "a" / "eval.json").unlink()
    assert "a was not measured: lorafit eval" in " ".join(compared(*runs).notes)


def test_the_metric_that_decides(tmp_path: Path):
    text = small_run(tmp_path / "text", language_scores())
    exact = {**language_scores(), "bleu_like": Scores.of_sums(np.zeros(60), np.ones(60))}
    asked = small_run(tmp_path / "asked", exact)
    classes = small_run(tmp_path / "classes", class_scores(0.9))
    assert compared(text, text).by == "loss"
    assert compared(asked, asked).by == "bleu_like"
    assert compared(classes, classes).by == "accuracy"
    found = compared(asked, text)
    assert found.by == "loss" and "their main metrics differ" in found.why
    assert compared(classes, classes, by="loss").by == "loss"
    with pytest.raises(RunError, match=r"--by accuracy(.|\n)*text: loss, perplexity\n  classes: accuracy, loss"):
        compared(text, classes, by="accuracy")
    nothing = small_run(tmp_path / "nothing")
    assert compared(text, nothing).which.kind == "not compared"
    assert compared(nothing, nothing).by is None


def of_task(directory: Path, scores: dict[str, Scores], task: str, problem_type: str | None = None) -> Run:
    run = small_run(directory, scores, sets=[f"task={task}"])
    data = run.record["data"]
    run.update(data={**data, "summary": {**data["summary"], "problem_type": problem_type}})
    return run


def test_of_different_tasks_only_gains_settings_and_costs_stand_beside_each_other(tmp_path: Path):
    single = "single_label_classification"
    text = of_task(tmp_path / "text", language_scores(), "sft")
    classes = of_task(tmp_path / "classes", class_scores(0.9), "classification", single)
    amounts = of_task(tmp_path / "amounts", class_scores(0.9), "classification", "regression")
    found = compared(text, classes)
    assert found.by is None and found.which.kind == "not compared"
    assert found.which.sentence == (
        "Not compared: text learned sft and classes learned classification, and figures of one task say nothing of "
        "another's. What can be compared stands above: what each gained over its own base model, settings, and cost."
    )
    reason = "text learned sft and classes learned classification, and figures of one task say nothing of another's"
    assert found.pairs[0].apart["loss"] == reason and compared(text, classes, by="loss").which.best == ()
    apart = compared(classes, amounts)
    assert apart.by is None and "amounts learned classification of amounts" in apart.which.sentence
    again = of_task(tmp_path / "again", class_scores(0.5, seed=1), "classification", single)
    three = compared(text, classes, again)
    assert three.by == "accuracy" and three.which.best == (1,)
    assert "the main metric of their task, classification, which 2 of the runs learned" in three.why
    assert "text is not judged beside classes: text has no such figure" in three.which.sentence


def test_main_metric():
    assert main_metric({"loss": 1, "perplexity": 1, "token_accuracy": 1, "chrf": 1, "bleu": 1}) == "chrf"
    assert main_metric({"accuracy": 1, "macro_f1": 1, "loss": 1}) == "accuracy"
    assert main_metric({"loss": 1, "perplexity": 1}) == "loss" and main_metric({}) is None


def test_a_best_run_that_gained_nothing_is_told(tmp_path: Path):
    runs = [small_run(tmp_path / name, language_scores(gain, seed=i))
            for i, (name, gain) in enumerate([("a", -0.5), ("b", -1.5)])]  # fmt: skip
    assert "a is no better than its own base model beyond chance." in compared(*runs).notes
    runs[1].update(state="interrupted")
    assert "b is not finished (state: interrupted)." in compared(*runs).notes


def test_cost(tmp_path: Path):
    run = small_run(tmp_path / "a", language_scores(), seconds=50)
    cost = compared(run, run).runs[0].cost
    assert (cost.seconds, cost.steps, cost.tokens, cost.tokens_per_second) == (50, 12, 5000, 100)
    assert (cost.peak_memory_bytes, cost.trainable, cost.adapter_bytes) == (2 * 10**9, 16_000, 1000)


def test_to_dict_is_json_and_names_runs(tmp_path: Path):
    runs = [small_run(tmp_path / name, language_scores(seed=i), sets=[f"lora.r={4 * (i + 1)}"])
            for i, name in enumerate("ab")]  # fmt: skip
    found = compared(*runs).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    assert found["settings"] == [{"setting": "lora.r", "values": {"a": 4, "b": 8}}]
    pair = found["pairs"][0]
    assert (pair["first"], pair["second"]) == ("a", "b") and pair["metrics"]["loss"]["rows"] == 60
    assert found["tried"]["runs"][1]["lora.r"] == 8 and found["verdict"]["kind"] == "no difference"
    assert set(found["verdict"]["best"]) == {"a", "b"}


def test_open_runs_lists_all_that_is_wrong(tmp_path: Path):
    small_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    bad = small_run(tmp_path / "bad").directory
    (bad / "recipe.yaml").write_text("model: {nam: x}\n")
    paths = [tmp_path / name for name in ("nope", "empty", "bad", "good", "good/../good")]
    with pytest.raises(RunError) as error:
        open_runs(paths)
    lines = str(error.value).splitlines()
    assert lines[0] == "4 problems:"
    for words in ("nope is not a directory", "empty is not a lorafit run", "model.nam is unknown", "is given twice"):
        assert any(words in line for line in lines)
    with pytest.raises(RunError, match="at least two runs"):
        open_runs([tmp_path / "good"])


def test_broken_evaluations_are_told_together(tmp_path: Path):
    runs = [small_run(tmp_path / name, language_scores()) for name in "abc"]
    (tmp_path / "a" / "eval.json").write_text("{")
    (tmp_path / "b" / "eval_rows.json").write_text('{"loss": {"figure": "ratio"}}')
    with pytest.raises(RunError) as error:
        compared(*runs)
    assert "a: eval.json cannot be read" in str(error.value) and "b: eval_rows.json" in str(error.value)
    assert "'base' is missing" in str(error.value) and str(error.value).count("lorafit eval") == 2


def test_names_tell_runs_apart(tmp_path: Path):
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert names_of([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]


def test_a_run_of_the_trainer(tiny_run: Path, tmp_path: Path):
    """Files as training writes them; a copy is equal in every respect."""
    copy = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    found = compared(Run.open(tiny_run), Run.open(copy))
    assert found.settings == () and found.tried is None
    assert found.runs[0].metrics == found.runs[1].metrics and set(found.pairs[0].apart) == set()
    assert set(found.pairs[0].metrics) == {"loss", "perplexity", "token_accuracy"}
    assert all(value.difference == 0 and value.p == 1 for value in found.pairs[0].metrics.values())
    assert found.which.kind == "no difference" and found.which.cheapest is None
    record, cost = Run(tiny_run).record, found.runs[0].cost
    assert cost.seconds == record["figures"]["wall_seconds"] and cost.trainable == record["parameters"]["trainable"]
    assert cost.device == record["plan"]["device"]
    evaluated(Run.open(copy), language_scores(rows=8))
    assert "different rows" in compared(Run.open(tiny_run), Run.open(copy)).pairs[0].apart["loss"]
