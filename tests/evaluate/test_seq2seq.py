"""An encoder-decoder's figures and answers against transformers' own, one row at a time."""

import pytest
import torch
from sacrebleu.metrics.chrf import CHRF
from tiny_seq2seq import EOS, pair_rows, tiny_seq2seq
from tiny_tokenizers import unigram
from torch.nn import functional as F
from transformers import PreTrainedModel

from lorafit.data import Seq2SeqTemplate
from lorafit.data.source_target import pair_row
from lorafit.evaluate import evaluate, generate, row_losses
from lorafit.evaluate.generate import Sampling, stream, text_of
from lorafit.evaluate.loss import _groups
from lorafit.evaluate.scores import scores_of
from lorafit.lora import LoraConfig, attach, disabled
from lorafit.models import settle_decoder_start
from lorafit.recipe import EvaluateSettings
from lorafit.train.fast import PLAIN, FastPath

FAST = FastPath(head=True, norms=True, update=True)
PROMPTS = [row["input_ids"] for row in pair_rows(7, seed=5)]


def sharpened(kind: str, **settings) -> PreTrainedModel:
    """A random model with a spread of answers, and no two tokens nearly equally likely."""
    model = tiny_seq2seq(kind, **settings).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name and "shared" not in name:
            parameter.mul_(6)
    return model


def by_hand(model: PreTrainedModel, prompt: list[int], length: int, stops: set[int], start: list[int]) -> list[int]:
    """Greedy without batch, padding or cache."""
    ids = list(start)
    with torch.no_grad():
        for _ in range(length):
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([ids])}
            token = int(model(**inputs, use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[1:]  # what was forced is a part of the answer


@pytest.mark.parametrize("forced", [[], [7]])
@pytest.mark.parametrize("kind", ["t5", "bart", "mbart"])
def test_batched_equals_one_by_one(kind, forced):
    model = sharpened(kind)
    settle_decoder_start(model, forced, [EOS])
    start = [0 if kind == "t5" else EOS, *forced]
    stops = {by_hand(model, PROMPTS[1], 9, set(), start)[4]} - {*forced}
    expected = [by_hand(model, prompt, 12 - len(forced), stops, start) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 1 and len(set(map(tuple, expected))) > 2
    for batch_size in (1, 3, 16):
        found = generate(model, PROMPTS, stop_token_ids=stops, max_new_tokens=12, batch_size=batch_size)
        assert found == expected


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_beams_of_a_batch_are_those_of_each_prompt_alone(kind):
    model = sharpened(kind)
    ask = {"stop_token_ids": {EOS}, "max_new_tokens": 10, "sampling": Sampling(num_beams=3)}
    together = generate(model, PROMPTS, **ask)
    assert together == [generate(model, [prompt], **ask)[0] for prompt in PROMPTS]
    assert together != generate(model, PROMPTS, **{**ask, "sampling": Sampling()})


def test_lengths_are_ours_and_what_a_model_never_says_is_its_own():
    model = sharpened("bart")
    stops = {by_hand(model, PROMPTS[1], 9, set(), [EOS])[4]}
    free = generate(model, PROMPTS, stop_token_ids=stops, max_new_tokens=14)
    lengths = {len(ids) for ids in free}
    assert min(lengths) < 5 and max(lengths) == 14
    model.generation_config.update(max_length=5, min_length=9, num_beams=4)
    assert generate(model, PROMPTS, stop_token_ids=stops, max_new_tokens=14) == free
    banned = max(free, key=len)[0]
    model.generation_config.bad_words_ids = [[banned]]
    assert all(banned not in ids for ids in generate(model, PROMPTS, stop_token_ids=stops, max_new_tokens=14))
    longest = generate(model, PROMPTS[:1], stop_token_ids=set(), max_new_tokens=1000)[0]
    assert len(longest) == model.config.max_position_embeddings


def test_an_answer_comes_word_by_word():
    tokenizer = unigram("bart")
    template = Seq2SeqTemplate(tokenizer)
    model = sharpened("mbart", vocab_size=len(tokenizer))
    settle_decoder_start(model, template.target_start, template.target_end)
    pieces, prompt = [], template.prompt_ids([{"role": "user", "content": "hello there"}])
    answer = stream(model, tokenizer, prompt, pieces.append, stop_token_ids=template.stop_token_ids, max_new_tokens=9)
    [ids] = generate(model, [prompt], stop_token_ids=template.stop_token_ids, max_new_tokens=9)
    assert ids[0] == tokenizer.bos_token_id  # as every target begins
    assert "".join(pieces) == answer == text_of(tokenizer, ids) != ""


@pytest.mark.parametrize("fast", [PLAIN, FAST])
@pytest.mark.parametrize("kind", ["t5", "bart", "mbart", "marian"])
def test_losses_are_those_of_each_row_alone(kind, fast):
    model, rows = tiny_seq2seq(kind).requires_grad_(False), pair_rows(11, seed=3)
    rows[2]["labels"] = [9, 8, 7]  # a cut target: without its end
    found = {budget: row_losses(model, rows, fast=fast, token_budget=budget) for budget in (30, 100, 4000)}
    for index, row in enumerate(rows):
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        if kind == "mbart" and index == 2:  # it would wrap the 7 around to the start
            starts = torch.tensor([[EOS, 9, 8]])
            logits = model(input_ids=ids, decoder_input_ids=starts).logits[0]
        else:
            logits = model(input_ids=ids, labels=labels).logits[0]
        expected = F.cross_entropy(logits, labels[0], reduction="sum").item()
        for one in found.values():
            assert one.loss[index] == pytest.approx(expected, rel=2e-5)
            assert one.correct[index] == (logits.argmax(-1) == labels[0]).sum().item()
            assert one.tokens[index] == len(row["labels"])


def test_groups_keep_the_budget_with_their_padding():
    model, rows = tiny_seq2seq("t5").requires_grad_(False), pair_rows(30, seed=3)
    scorer = scores_of(model)
    documents = [scorer.document(row) for row in rows]
    tokens = torch.tensor([len(row["labels"]) for row in rows]).numpy()
    groups = list(_groups(documents, tokens, scorer, FAST, 120))
    assert sorted(index for group in groups for index in group) == list(range(30)) and 5 < len(groups) < 20
    for group in groups:
        longest = [max(len(rows[index][name]) for index in group) for name in ("input_ids", "labels")]
        assert len(group) * sum(longest) <= 120 or len(group) == 1


def test_base_and_tuned_are_measured_and_answer_side_by_side():
    tokenizer = unigram()
    template = Seq2SeqTemplate(tokenizer, prefix="user: ")
    model = sharpened("mbart", vocab_size=len(tokenizer))
    settle_decoder_start(model, template.target_start, template.target_end)
    attach(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="SEQ_2_SEQ_LM"))
    pairs = [
        ("hello there", "Hello!"),
        ("hello there", "How can I help"),
        ("The fox", "The lazy dog"),
        ("1. First", "item"),
    ]
    rows = [pair_row(str(index), *pair) for index, pair in enumerate(pairs)]
    encoded = template.encode(*zip(*pairs, strict=True))
    held_out = [{"input_ids": pair.source, "labels": pair.target} for pair in encoded]
    ask = EvaluateSettings(metrics=["chrf", "exact_match"], max_new_tokens=6, num_beams=2, bootstrap_samples=100)
    done = []
    found = evaluate(model, tokenizer, template, held_out, rows, settings=ask, on_rows=done.append)
    assert sum(done) == 2 * (4 + 3)
    assert [*found.results.metrics] == ["loss", "perplexity", "token_accuracy", "chrf", "exact_match"]
    assert found.answered == 3 and found.comparison.tokens == sum(len(row["labels"]) for row in held_out)
    assert found.results.metrics["loss"].tuned == pytest.approx(row_losses(model, held_out).mean)
    sample = found.samples[0]
    assert (sample.prompt, sample.references) == ("hello there", ("Hello!", "How can I help"))
    [ids] = generate(model, [encoded[0].source], stop_token_ids=[1], max_new_tokens=6, sampling=Sampling(num_beams=2))
    assert sample.tuned == text_of(tokenizer, ids).strip()
    expected = CHRF().corpus_score([sample.tuned], [["Hello!"], ["How can I help"]]).score
    assert sample.scores["chrf"][1] == pytest.approx(expected)
    with disabled(model):
        assert found.results.metrics["loss"].base == pytest.approx(row_losses(model, held_out).mean)
        [ids] = generate(
            model, [encoded[0].source], stop_token_ids=[1], max_new_tokens=6, sampling=Sampling(num_beams=2)
        )
        assert sample.base == text_of(tokenizer, ids).strip() != sample.tuned
