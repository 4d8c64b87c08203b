"""The live page's server: this machine only, and only what is new."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from runs import log, start, text_run

from lorafit.errors import RunError
from lorafit.report.page import page
from lorafit.report.watch import PageServer


@contextmanager
def served(run) -> Iterator[PageServer]:
    with PageServer(run) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_page_is_served_and_only_what_is_new(tmp_path):
    run = start(tmp_path / "run")
    log(run, last=3)
    with served(run) as server:
        status, text, headers = ask(server)
        assert (status, text) == (200, page(run, live=True)) and headers["Content-Type"] == "text/html; charset=utf-8"
        assert ask(server, If_None_Match=headers["ETag"])[:2] == (304, "")
        log(run, first=4, last=4)
        status, text, newer = ask(server, If_None_Match=headers["ETag"])
        assert status == 200 and "step 4 of 40" in text and newer["ETag"] != headers["ETag"]
        status, text, headers = ask(server, method="HEAD")
        assert (status, text) == (200, "") and int(headers["Content-Length"]) > 1000


def test_other_hosts_and_paths_are_refused(tmp_path):
    with served(text_run(tmp_path / "run")) as server:
        port = server.server_port
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1:{port + 1}",
            f"127.0.0.1.evil:{port}",
        ):
            status, text, _ = ask(server, Host=host)
            assert status == 403 and "<" not in text
        for host in (f"localhost:{port}", f"127.0.0.1:{port}"):
            assert ask(server, Host=host)[0] == 200
        for path in ("/run.json", "/../run.json", "/?x=1", "//evil.example/"):
            assert ask(server, path)[0] == 404
        assert ask(server, method="POST")[0] == 501
        assert server.server_address[0] == "127.0.0.1"


def test_a_run_that_cannot_be_read_is_an_answer_and_not_the_end(tmp_path):
    run = text_run(tmp_path / "run")
    recipe = (run.directory / "recipe.yaml").read_text()
    with served(run) as server:
        (run.directory / "recipe.yaml").write_text("lora: {rank: x}")
        status, text, _ = ask(server)
        assert status == 500 and "lora" in text
        (run.directory / "recipe.yaml").write_text(recipe)
        assert ask(server)[0] == 200


def test_a_port_in_use_is_a_clear_error(tmp_path):
    run = text_run(tmp_path / "run")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(RunError, match=f"port {port} cannot be used .*: choose another, or leave out --port"):
            PageServer(run, port)
