"""The official client against a real server."""

import math

import httpx2 as httpx
import openai
import pytest
import torch

from lorafit.evaluate import Sampling, generate
from lorafit.evaluate.generate import text_of
from lorafit.run import Run

MESSAGES = [{"role": "user", "content": "Greet guest 7."}]


@pytest.fixture(scope="session")
def expected(two_runs):
    """What `lorafit generate` says, greedily, by model: the run as it is loaded everywhere else."""
    from lorafit.lora import disabled

    answers = {}
    for name, directory in two_runs.items():
        model, tokenizer, template = Run(directory).load_model()
        prompt = template.prompt_ids(MESSAGES)
        ask = lambda: generate(model, [prompt], stop_token_ids=template.stop_token_ids, max_new_tokens=24)[0]  # noqa: E731, B023
        answers[name] = text_of(tokenizer, ask())
        with disabled(model):
            answers["tiny-llama"] = text_of(tokenizer, ask())
    return answers


def test_models_are_listed_by_name(client, server):
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny-llama", "tiny", "other"]
    assert [model.parent for model in models] == [None, "tiny-llama", "tiny-llama"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'none' does not exist"):
        client.models.retrieve("none")


@pytest.mark.parametrize("model", ["tiny-llama", "tiny", "other"])
def test_chat_answers_as_the_run_does(client, expected, model):
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == expected[model] and choice.message.role == "assistant"
    assert answer.model == model and answer.object == "chat.completion"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 24 and choice.logprobs is None
    assert len(set(expected.values())) == 3


def test_streaming_says_the_same_in_pieces(client, expected):
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    text = "".join(choice.delta.content or "" for event in events for choice in event.choices)
    assert text == expected["tiny"]
    assert events[0].choices[0].delta.role == "assistant"
    assert [event.usage is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1].choices == [] and events[-1].usage.completion_tokens > 3
    reasons = [choice.finish_reason for event in events for choice in event.choices]
    assert reasons[-1] and not any(reasons[:-1])
    assert len(events) > 6  # piece by piece, not at once


def test_parts_of_a_message_and_roles(client, expected):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Greet "}, {"type": "text", "text": "guest 7."}]}]
    answer = client.chat.completions.create(model="tiny", messages=parts, temperature=0)
    assert answer.choices[0].message.content == expected["tiny"]
    with_system = [{"role": "developer", "content": "Be kind."}, *MESSAGES]
    other = client.chat.completions.create(model="tiny", messages=with_system, temperature=0)
    assert other.usage.prompt_tokens > answer.usage.prompt_tokens


def test_log_probabilities_are_the_models(client, two_runs):
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3, max_completion_tokens=6
    )
    said = answer.choices[0].logprobs.content
    assert "".join(token.token for token in said) == answer.choices[0].message.content
    assert all(bytes(token.bytes).decode() == token.token for token in said)
    model, tokenizer, template = Run(two_runs["tiny"]).load_model()
    prompt = template.prompt_ids(MESSAGES)
    ids = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(token.token))[0] for token in said]
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1)
    assert [token.logprob for token in said] == pytest.approx(
        [float(logprobs[i, id]) for i, id in enumerate(ids)], abs=1e-4
    )
    for token, row in zip(said, logprobs, strict=True):
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_seeds_choices_and_sampling(client):
    ask = lambda **settings: client.chat.completions.create(  # noqa: E731
        model="tiny-llama", messages=MESSAGES, max_tokens=12, n=3, **settings
    )
    first, again, other = ask(seed=5), ask(seed=5), ask(seed=6)
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) == 3
    assert first.usage.completion_tokens <= 36
    nearly_greedy = ask(seed=1, top_p=1e-6)
    assert len({choice.message.content for choice in nearly_greedy.choices}) == 1


def test_stop_and_length(client, expected):
    whole = expected["tiny"]
    stop = whole[3:5]
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, stop=["zzzz", stop])
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=2)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2


def test_completions_of_texts_and_tokens(client, server):
    both = client.completions.create(model="tiny", prompt=["Greet", "Hello"], temperature=0, n=2, logprobs=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in both.choices]
    assert texts[0] == texts[1] and texts[2] == texts[3]
    assert both.usage.completion_tokens <= 4 * 16  # OpenAI's default
    ids = server.service.models.tokenizer("Greet")["input_ids"]
    by_ids = client.completions.create(model="tiny", prompt=ids, temperature=0)
    assert by_ids.choices[0].text == texts[0] and by_ids.usage.prompt_tokens == len(ids)
    logprobs = both.choices[0].logprobs
    assert "".join(logprobs.tokens) == texts[0] and len(logprobs.top_logprobs[0]) == 2
    whole = texts[0].split("\ufffd")[0]  # bytes that are no character wait for the next token
    pairs = [(at, token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True) if at < len(whole)]
    assert pairs and all(whole[at] == token[0] for at, token in pairs)
    assert all(value <= 0 and math.isfinite(value) for value in logprobs.token_logprobs)
    streamed = client.completions.create(model="tiny", prompt="Greet", temperature=0, stream=True)
    assert "".join(event.choices[0].text for event in streamed) == texts[0]


def test_a_uniform_draw_follows_the_distribution(server):
    """Sampled tokens of a prompt: their shares are the model's probabilities (chi-square)."""
    model = server.service.models
    ids = torch.tensor([model.tokenizer("Hi")["input_ids"]])
    from lorafit.serve.sampling import Sampling as Draw
    from lorafit.serve.sampling import next_tokens

    with torch.no_grad():
        logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 1.5
    count = 4000
    draws = [Draw(0.8, 0.9, torch.Generator().manual_seed(i)) for i in range(count)]
    tokens = torch.tensor(next_tokens(logits.expand(count, -1), draws))
    probabilities = (logits[0] / 0.8).softmax(-1).double()
    order = probabilities.argsort(descending=True)
    kept = order[: int((probabilities[order].cumsum(0) < 0.9).sum()) + 1]
    assert set(tokens.tolist()) <= set(kept.tolist())
    wanted = probabilities[kept] / probabilities[kept].sum() * count
    seen = torch.tensor([(tokens == token).sum() for token in kept])
    chi_square = float(((seen - wanted) ** 2 / wanted).sum())
    assert chi_square < len(kept) + 4 * math.sqrt(2 * len(kept))
    assert ids.numel()


WRONG = {
    "messages": [{"messages": []}, {"messages": [{"role": "robot", "content": "x"}]}],
    "max_tokens": [{"max_tokens": 0}, {"max_tokens": "12"}, {"max_tokens": 10**6}],
    "temperature": [{"temperature": -1}, {"temperature": 2.5}],
    "top_p": [{"top_p": 0}],
    "n": [{"n": 0}, {"n": 9}],
    "stop": [{"stop": ""}, {"stop": ["x"] * 17}],
    "top_logprobs": [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}],
    "presence_penalty": [{"presence_penalty": 0.5}],
    "logit_bias": [{"logit_bias": {"5": 1}}],
    "tools": [{"tools": [{"type": "function", "function": {"name": "f"}}]}],
    "response_format": [{"response_format": {"type": "json_object"}}],
    "min_p": [{"min_p": 0.1}],
    "stream_options": [{"stream_options": {"include_usage": True}}],
    "max_completion_tokens": [{"max_tokens": 3, "max_completion_tokens": 4}],
}


@pytest.mark.parametrize(("param", "given"), [(param, given) for param, all in WRONG.items() for given in all])
def test_what_cannot_be_done_is_refused_by_name(server, param, given):
    body = {"model": "tiny", "messages": MESSAGES, **given}
    answer = httpx.post(f"{server.url}v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"].partition("[")[0] == param and len(error["message"]) > 10


def test_what_changes_nothing_is_taken(client):
    harmless = {
        "user": "u", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "store": False,
        "response_format": {"type": "text"}, "metadata": {"a": "b"}, "service_tier": "auto",
        "parallel_tool_calls": True, "stream": False, "n": 1, "seed": -3,
    }  # fmt: skip
    assert client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, **harmless).choices
    client.completions.create(model="tiny", prompt="x", max_tokens=2, echo=False, best_of=1, suffix="")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", echo=True)
    assert caught.value.param == "echo"


def test_errors_have_the_clients_own_kinds(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="unknown", messages=MESSAGES)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 3000}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="prompt holds a token id beyond 258"):
        client.completions.create(model="tiny", prompt=[5, 10**6])
    url = f"{server.url}v1/chat/completions"
    as_json = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[1]", b"\xff\xfe", b'{"model": "tiny", "messages": ' + b"[" * 100_000):
        answer = httpx.post(url, content=body, headers=as_json)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert httpx.post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(url, content=b"x" * (3 * 2**20), headers=as_json).status_code == 413
    assert httpx.get(url).status_code == 405 and httpx.get(f"{server.url}nothing").status_code == 404


def test_greedy_is_the_default_of_no_one(client):
    """OpenAI's default is temperature 1: two answers without a seed differ."""
    ask = lambda: client.chat.completions.create(model="tiny-llama", messages=MESSAGES, max_tokens=16)  # noqa: E731
    assert len({ask().choices[0].message.content for _ in range(4)}) > 1
    assert Sampling().temperature == 0
