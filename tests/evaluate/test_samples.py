from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics.chrf import CHRF
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorafit.data import Row, Template
from lorafit.evaluate import Questions, Results, Sample, evaluate
from lorafit.evaluate.generate import generate, text_of
from lorafit.evaluate.loss import row_losses
from lorafit.evaluate.samples import scored
from lorafit.lora import LoraConfig, attach, disabled
from lorafit.metrics import Scores
from lorafit.metrics.answers import answer_metric
from lorafit.recipe import EvaluateSettings
from lorafit.run import Run

TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]


@pytest.fixture
def tokenizer(tiny_model_directory: Path):
    return AutoTokenizer.from_pretrained(tiny_model_directory)


def chat(number: int, turns: int = 1) -> Row:
    question, answer = {"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "Answer."}
    return Row(f"rows.jsonl:{number}", messages=[*TURNS * (turns - 1), question, answer])


def test_prompts_are_spread_and_long_ones_give_way(tokenizer):
    template = Template(tokenizer)
    rows = [chat(0), chat(1, turns=9), chat(2), chat(3, turns=9), chat(4), chat(5)]
    texts = [prompt.text for prompt in Questions(rows, tokenizer, template).spread(3).values()]
    assert [text[-11:] for text in texts] == ["Question 0?", "Question 2?", "Question 4?"]
    fitting = [*Questions([rows[1], rows[3], rows[5]], tokenizer, template, longest=100).spread(3).values()]
    assert [prompt.text for prompt in fitting] == ["Question 5?"]
    assert fitting[0].token_ids == template.prompt_ids([{"role": "user", "content": "Question 5?"}])
    assert fitting[0].references == ("Answer.",)


def test_a_longer_conversation_shows_who_speaks(tokenizer):
    [prompt] = Questions([chat(7, turns=2)], tokenizer, Template(tokenizer)).spread(1).values()
    assert prompt.text == "user: Hi.\nassistant: Yes?\nuser: Question 7?"


def test_plain_text_is_continued(tokenizer):
    text = "The stars were bright that night."
    [prompt] = Questions([Row("a.txt:1", text=text)], tokenizer, Template(tokenizer)).spread(5).values()
    assert prompt.text + prompt.references[0] == text and len(prompt.text) == len(text) // 2


def answered(question: str, answer: str) -> Row:
    return Row("a.jsonl:1", messages=[{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def test_rows_with_one_prompt_are_one_question_with_all_answers(tokenizer):
    rows = [answered("A?", "one"), answered("B?", "x"), answered("A? ", "two"), answered("A?", "one")]
    rows += [Row("a.txt:1", text="The same text."), Row("a.txt:2", text="The same text.")]
    questions = Questions(rows, tokenizer, Template(tokenizer))
    found = [*questions.spread(10).values()]
    assert len(questions) == len(found) == 4
    assert found[0].references == ("one", "two") and found[1].references == ("x",)


def test_questions_that_changed_most_are_found_by_the_loss(tokenizer):
    rows = [answered(f"{letter}?", "y") for letter in "ABCDE"]
    losses = np.array([[1.0, 0.9], [1.0, 1.5], [1.0, 1.0], [2.0, 0.1], [1.0, 1.1]])
    questions = Questions(rows, tokenizer, Template(tokenizer), losses=losses)
    found = questions.changed_most(1)
    assert [prompt.text for prompt in found.values()] == ["D?", "B?"] and [*found] == [3, 1]
    assert found[3].loss == (2.0, 0.1)
    assert [*questions.changed_most(9)] == [3, 0, 1, 4]  # C has not changed


def test_answers_are_scored_where_a_reference_is():
    samples = [Sample("a", "x", "y", "x"), Sample("b", None, "", ""), Sample("c", "u", "v", "v", ("u", "v"))]
    scores, found = scored(samples, [answer_metric("exact_match")])
    assert scores["exact_match"].base.tolist() == [[0.0, 1.0], [1.0, 1.0]]
    assert scores["exact_match"].tuned.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert [sample.scores for sample in found] == [{"exact_match": (0.0, 1.0)}, {}, {"exact_match": (1.0, 1.0)}]
    assert scored(samples, []) == ({}, samples)


def adapted(directory: Path, tokenizer, count: int):
    """A model whose adapter changes its answers, its template, and rows as messages and as tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    torch.manual_seed(0)
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    template = Template(tokenizer)
    rows = [chat(number) for number in range(count)]
    return model, template, rows, [vars(template.encode(row, 64)) for row in rows]


def test_evaluate_scores_both_models_and_leaves_the_adapter_on(tiny_model_directory: Path, tokenizer):
    model, template, rows, held_out = adapted(tiny_model_directory, tokenizer, 6)
    before = row_losses(model, held_out).mean
    done: list[int] = []
    found = evaluate(
        model,
        tokenizer,
        template,
        held_out,
        rows,
        settings=EvaluateSettings(samples=2, max_new_tokens=5),
        on_rows=done.append,
    )
    assert sum(done) == 2 * (6 + len(found.samples)) and 2 <= len(found.samples) <= 6
    assert row_losses(model, held_out).mean == before
    loss = found.results.metrics["loss"]
    assert loss.tuned == pytest.approx(before)
    with disabled(model):
        assert loss.base == pytest.approx(row_losses(model, held_out).mean)
        prompt = template.prompt_ids(rows[0].prompt_messages)
        [answer] = generate(model, [prompt], stop_token_ids=template.stop_token_ids, max_new_tokens=5)
        assert found.samples[0].base == text_of(tokenizer, answer).strip()
    assert found.samples[0].tuned != found.samples[0].base
    assert found.comparison.tokens == sum(label != -100 for row in held_out for label in row["labels"])


def test_metrics_of_answers_decide(tiny_model_directory: Path, tokenizer):
    model, template, rows, held_out = adapted(tiny_model_directory, tokenizer, 5)
    ask = EvaluateSettings(samples=1, max_new_tokens=4, metrics=["chrf", "exact_match"], generated_rows=3, num_beams=2)
    found = evaluate(model, tokenizer, template, held_out, rows, settings=ask)
    assert found.main == "chrf" and found.answered == 3 and len(found.samples) == 3
    assert [*found.results.metrics] == ["loss", "perplexity", "token_accuracy", "chrf", "exact_match"]
    assert found.answer_metrics == ["chrf", "exact_match"] and "chrF on 3 held-out prompts" in found.verdict.sentence
    for sample in found.samples:
        for answer, score in zip((sample.base, sample.tuned), sample.scores["chrf"], strict=True):
            assert score == pytest.approx(CHRF().corpus_score([answer], [["Answer."]]).score)
    better, worse = found.changed(9)
    gains = [sample.scores["chrf"][1] - sample.scores["chrf"][0] for sample in better]
    assert gains == sorted(gains, reverse=True) and all(gain > 0 for gain in gains)
    assert all(sample.scores["chrf"][1] < sample.scores["chrf"][0] for sample in worse)
    greedy = ask.model_copy(update={"num_beams": 1, "generated_rows": None})
    other = evaluate(model, tokenizer, template, held_out, rows, settings=greedy)
    assert other.answered == 5 and other.samples[0].tuned != found.samples[0].tuned
    one, another = found.results.rows_sha256, other.results.rows_sha256
    assert one["loss"] == another["loss"] and one["chrf"] == one["exact_match"] != another["chrf"]


def test_results_are_read_back(tmp_path: Path):
    samples = [Sample("früh", None, "a\nb", "c"), Sample("p", "r", "", "\u2028", ("r", "s"), {"loss": (2.0, 1.0)})]
    scores = {"loss": Scores.of_sums(np.array([2.0, 1.0]), np.array([1.0, 1.0]), np.array([1.0, 1.0]))}
    rows = [Row("1", text="one  row"), Row("2", text="another")]
    results = Results.of(scores, rows, EvaluateSettings(), 42)
    results.write(tmp_path, samples)
    run = Run(tmp_path)
    assert run.samples == [
        {"prompt": "früh", "reference": None, "base": "a\nb", "tuned": "c"},
        {"prompt": "p", "reference": "r", "base": "", "tuned": "\u2028", "references": ["r", "s"],
         "scores": {"loss": [2.0, 1.0]}},
    ]  # fmt: skip
    assert run.results == {"loss": {"base": 1.5, "tuned": 1.0, "difference": -0.5, "interval": [-1.0, 0.0]}}
    assert run.scored_rows == {"loss": {"rows_sha256": results.rows_sha256["loss"], **scores["loss"].to_dict()}}
    other = Results.of(scores, [*rows[:1], Row("2", text="a third")], EvaluateSettings(), 42)
    assert other.rows_sha256 != results.rows_sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "eval_rows.json", "samples.jsonl"]
    nothing = Run(tmp_path / "nothing")
    assert (nothing.samples, nothing.results, nothing.scored_rows) == ([], {}, {})
