"""Keys, hosts, the queue, leaving clients, adapters that come and go, and what is counted and logged."""

import http.client
import io
import json
import shutil
import socket
import threading
import time

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from lorafit.errors import AdapterError, ConfigError, ModelError, RunError
from lorafit.run import Run
from lorafit.serve import guard
from lorafit.serve.log import log_to
from lorafit.serve.models import common_base, named_runs
from lorafit.serve.server import bound, check_address

MESSAGES = [{"role": "user", "content": "Greet guest 7."}]
SECRET_PROMPT = "the sentence that no log may hold"


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)


def endless(**settings) -> dict:
    """A request that takes long."""
    return {"model": "tiny-llama", "prompt": "x", "max_tokens": 1500, "seed": 1, "logit_bias": {}, **settings}


@pytest.fixture
def never_stops(monkeypatch):
    """No token ends an answer, and a step takes some time, as a real model's does."""
    from lorafit.data.template import Template
    from lorafit.serve.batch import Batch

    before = Template._study

    def study(self):
        before(self)
        self.stop_token_ids = []

    step = Batch.step

    def slow(self, forward):
        time.sleep(0.003)
        step(self, forward)

    monkeypatch.setattr(Template, "_study", study)
    monkeypatch.setattr(Batch, "step", slow)


def status_of(server, path="/health", method="GET", body=None, **headers) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
    status = connection.getresponse().status
    connection.close()
    return status


def test_other_hosts_and_origins_are_refused(server):
    port = server.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        assert status_of(server, Host=host) == 403
    for host in (f"localhost:{port}", f"127.0.0.1:{port}"):
        assert status_of(server, Host=host) == 200
        assert status_of(server, Host=host, Origin="http://evil.example") == 403
        assert status_of(server, Host=host, Origin=f"http://{host}") == 200


def test_another_address_demands_a_key():
    for host in ("127.0.0.1", "localhost", "::1"):
        check_address(host, None)
    with pytest.raises(ConfigError, match="LORAFIT_API_KEY"):
        check_address("0.0.0.0", None)
    check_address("0.0.0.0", "key")
    with bound("127.0.0.1", 0) as taken, pytest.raises(RunError, match=r"cannot be used .*: choose another"):
        bound("127.0.0.1", taken.getsockname()[1])


def test_keys(two_runs, start):
    with start({"tiny": two_runs["tiny"]}, api_key="secret", admin_key="admin") as server:
        assert status_of(server) == 200 and status_of(server, "/") == 200
        for path in ("/v1/models", "/metrics", "/v1/models/tiny"):
            for wrong in ("", "Bearer", "Bearer secre", "Bearer secret2", "Basic secret", "Bearer \xe9"):
                assert status_of(server, path, Authorization=wrong) == 401
            assert status_of(server, path, Authorization="Bearer secret") == 200
            assert status_of(server, path, Authorization="Bearer admin") == 200
        assert status_of(server, "/v1/adapters/tiny", "DELETE", Authorization="Bearer secret") == 401
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            server.client("wrong").models.list()
        assert len(server.client("secret").models.list().data) == 2


def test_adapters_come_and_go(two_runs, start, tmp_path):
    with start({"tiny": two_runs["tiny"]}) as server:
        assert status_of(server, "/v1/adapters/tiny", "DELETE") == 403  # no admin key: for nobody
    with start({"tiny": two_runs["tiny"]}, admin_key="admin") as server:
        client, admin = server.client(), {"Authorization": "Bearer admin"}
        url = f"{server.url}v1/adapters"
        ask = lambda model: client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=8)  # noqa: E731
        before = ask("tiny").choices[0].message.content
        added = httpx.post(url, json={"name": "new", "path": str(two_runs["other"])}, headers=admin)
        assert added.status_code == 201 and added.json()["id"] == "new" and added.json()["parent"] == "tiny-llama"
        assert ask("new").choices[0].message.content != before == ask("tiny").choices[0].message.content
        by_folder = httpx.post(url, json={"name": "f", "path": str(two_runs["other"] / "adapter")}, headers=admin)
        assert by_folder.status_code == 201
        assert ask("f").choices[0].message.content == ask("new").choices[0].message.content

        damaged = shutil.copytree(two_runs["other"], tmp_path / "damaged")
        (damaged / "adapter" / "adapter_model.safetensors").write_bytes(b"no")
        for body, status, param in (
            ({"name": "new", "path": str(two_runs["other"])}, 409, "name"),
            ({"name": "-x", "path": str(two_runs["other"])}, 400, "name"),
            ({"name": "y", "path": str(tmp_path / "nowhere")}, 400, "path"),
            ({"name": "y", "path": str(damaged)}, 400, "path"),
            ({"name": "y", "path": "some/hub-id"}, 400, "path"),
            ({"name": "y"}, 400, "path"),
            ({"name": "y", "path": "p", "rank": 3}, 400, "rank"),
        ):
            refused = httpx.post(url, json=body, headers=admin)
            assert (refused.status_code, refused.json()["error"]["param"]) == (status, param), refused.text
        assert [model.id for model in client.models.list().data] == ["tiny-llama", "tiny", "new", "f"]

        gone = httpx.delete(f"{url}/tiny", headers=admin)
        assert gone.json() == {"id": "tiny", "object": "model", "deleted": True}
        with pytest.raises(openai.NotFoundError):
            ask("tiny")
        assert httpx.delete(f"{url}/tiny", headers=admin).status_code == 404
        assert httpx.delete(f"{url}/tiny-llama", headers=admin).status_code == 400
        assert ask("new").choices[0].message.content != before
        until(lambda: not any("served1" in name for name, _ in server.service.models.model.named_parameters()))


def test_a_full_queue_a_time_limit_and_a_client_that_leaves(two_runs, start, never_stops):
    with start({"tiny": two_runs["tiny"]}, batch_rows=1, queue=1, seconds=1.5) as server:
        engine, client = server.service.engine, server.client()
        failures = []

        def ask(**settings):
            try:
                client.completions.create(**endless(**settings))
            except openai.APIStatusError as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        until(lambda: engine.running == 1)
        threads[1].start()
        until(lambda: engine.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(**endless())
        assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60 and caught.value.code == "queue_full"
        for thread in threads:
            thread.join(30)
        assert [failure.status_code for failure in failures] == [504, 504]
        assert "no answer was finished within" in failures[0].message

    with start({"tiny": two_runs["tiny"]}, seconds=60) as server:
        engine, client = server.service.engine, server.client()
        stream = client.completions.create(**endless(), stream=True)
        next(iter(stream))
        stream.close()
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/v1/completions", json.dumps(endless()), {"Content-Type": "application/json"})
        until(lambda: engine.running == 1)  # the stream's row has gone, this one's is there
        connection.close()
        until(lambda: engine.running == 0)
        assert client.completions.create(**endless(max_tokens=3)).usage.completion_tokens == 3


def test_a_stream_whose_time_is_over_ends_with_an_error(two_runs, start, never_stops):
    with start({"tiny": two_runs["tiny"]}, seconds=0.5) as server:
        with pytest.raises(openai.APIError, match="no answer was finished within"):
            for _ in server.client().completions.create(**endless(), stream=True):
                pass
        assert server.service.engine.is_alive


def test_a_request_s_time_is_over_also_while_the_engine_is_busy_with_one_step(two_runs, start):
    with start({"tiny": two_runs["tiny"]}, seconds=0.5) as server, server.client() as client:
        busy = threading.Event()
        server.service.engine.call(lambda: busy.wait(60))
        for settings in {}, {"stream": True}:
            with pytest.raises(openai.APIStatusError, match="no answer was finished within") as caught:
                client.completions.create(**endless(**settings))
            assert caught.value.status_code == 504
            caught.value.response.close()
        busy.set()
        until(lambda: server.service.engine.waiting == server.service.engine.running == 0)
        assert client.completions.create(**endless(max_tokens=3)).usage.completion_tokens == 3


def test_stopping_finishes_the_answer_that_is_being_written(two_runs, start, never_stops):
    with start({"tiny": two_runs["tiny"]}) as server:
        stream = server.client().completions.create(**endless(max_tokens=200), stream=True)
        next(iter(stream))
        server.server.handle_exit(2, None)
        reasons = [event.choices[0].finish_reason for event in stream]
        assert reasons[-1] == "length"
        until(lambda: not server.service.engine.is_alive)
        with pytest.raises(openai.APIConnectionError):
            server.client().models.list()


def test_metrics_and_logs_without_a_word_of_the_prompt(two_runs, start):
    lines = io.StringIO()
    log_to(lines)
    try:
        with start({"tiny": two_runs["tiny"]}, api_key="secret-key") as server:
            client = server.client("secret-key")
            messages = [{"role": "user", "content": SECRET_PROMPT}]
            answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, temperature=0)
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(model=SECRET_PROMPT, messages=messages)
            text = httpx.get(f"{server.url}metrics", headers={"Authorization": "Bearer secret-key"}).text
    finally:
        log_to(io.StringIO())
    tokens = answer.usage
    assert f'lorafit_prompt_tokens_total{{model="tiny"}} {tokens.prompt_tokens}.0' in text
    assert f'lorafit_completion_tokens_total{{model="tiny"}} {tokens.completion_tokens}.0' in text
    assert 'lorafit_requests_total{endpoint="/v1/chat/completions",model="tiny",status="200"} 1.0' in text
    assert 'lorafit_requests_total{endpoint="/v1/chat/completions",model="",status="404"} 1.0' in text
    assert "lorafit_running_rows 0.0" in text and "lorafit_step_seconds_count" in text
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    requests = [line for line in logged if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 404, 200]
    assert requests[0]["model"] == "tiny" and requests[0]["completion_tokens"] == tokens.completion_tokens
    assert requests[1]["reason"] == "model_not_found"
    for secret in (SECRET_PROMPT, "secret-key", answer.choices[0].message.content):
        assert secret not in lines.getvalue()


def test_a_body_that_does_not_come_is_given_up(server, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 50\r\n\r\nhalf"
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_runs_of_other_bases_are_named(two_runs, tmp_path, start):
    other = shutil.copytree(two_runs["tiny"], tmp_path / "apart")
    base = shutil.copytree(Run(two_runs["tiny"]).find_base().path, tmp_path / "another-base")
    run = Run(other)
    run.update(model={**run.record["model"], "reference": str(base)})
    with pytest.raises(ModelError) as caught:
        common_base({"a": Run(two_runs["tiny"]), "b": run})
    for words in (str(two_runs["tiny"]), str(other), "tiny-llama", "another-base"):
        assert words in str(caught.value)
    with start({"tiny": two_runs["tiny"]}, admin_key="admin") as server:
        refused = httpx.post(f"{server.url}v1/adapters", json={"name": "x", "path": str(other)},
                             headers={"Authorization": "Bearer admin"})  # fmt: skip
        assert refused.status_code == 400 and "another-base" in refused.json()["error"]["message"]


def test_names(two_runs, tmp_path):
    tiny = two_runs["tiny"]
    assert list(named_runs([str(tiny), f"second={tiny}"])) == ["tiny", "second"]
    with pytest.raises(ConfigError, match="would both be called 'tiny'"):
        named_runs([str(tiny), str(tiny)])
    with pytest.raises(ConfigError, match="cannot name a model"):
        named_runs([f"a b={tiny}"])
    with pytest.raises(RunError, match="is not a directory"):
        named_runs([str(tmp_path / "none")])


def test_an_adapter_that_says_other_things_in_a_batch_is_refused(two_runs, start, monkeypatch):
    from lorafit.lora.layers.linear import Layer

    with start({"tiny": two_runs["tiny"]}) as server:
        models = server.service.models
    forward = Layer.forward_by_rows
    monkeypatch.setattr(Layer, "forward_by_rows", lambda self, x, *rest: forward(self, x, *rest) * 1.01)
    with pytest.raises(AdapterError, match="in a batch beside the base model its logits differ"):
        models.add("wrong", two_runs["other"])
    assert [served.name for served in models.list()] == ["tiny-llama", "tiny"]


def test_many_clients_at_once_get_their_own_answers(server):
    client = server.client()
    ask = lambda client, model: client.chat.completions.create(  # noqa: E731
        model=model, messages=MESSAGES, temperature=0, max_tokens=12
    ).choices[0].message.content  # fmt: skip
    names = ["tiny-llama", "tiny", "other"]
    expected = {name: ask(client, name) for name in names}
    found: list[tuple[str, str]] = []

    def work(number: int, own: OpenAI) -> None:
        name = names[number % 3]
        found.append((name, ask(own, name)))

    threads = [threading.Thread(target=work, args=(i, client)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 24 and all(text == expected[name] for name, text in found)
