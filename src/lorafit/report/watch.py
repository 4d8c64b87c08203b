"""A run's page served on this machine alone, made anew when the run's files have changed."""

import hashlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from lorafit.errors import LorafitError, RunError
from lorafit.report.page import page
from lorafit.run import Run

ADDRESS = "127.0.0.1"
READ = ("run.json", "recipe.yaml", "metrics.jsonl", "eval.json", "eval_rows.json", "samples.jsonl", "updates.json")


class PageServer(ThreadingHTTPServer):
    """Serves one run's live page at `/`, to this machine only.

    Args:
        run: The run.
        port: 0 takes a free one.

    Raises:
        RunError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, run: Run, port: int = 0) -> None:
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise RunError(
                f"port {port} cannot be used ({error.strerror}): choose another, or leave out --port"
            ) from None
        self.run, self._lock = run, Lock()
        self._made: tuple[str, bytes] = ("", b"")

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> set[str]:
        """Names that a browser may ask by: another one is another site's, pointed here (DNS rebinding)."""
        return {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    def newest(self) -> tuple[str, bytes]:
        """The page and its tag; made again where a file has changed since.

        Raises:
            LorafitError: The run cannot be read.
        """
        with self._lock:
            tag = _state(self.run.directory)
            if tag != self._made[0]:
                self._made = tag, page(self.run, live=True).encode()
            return self._made


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        """Answer with the page, with "not modified", or with what is wrong."""
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(HTTPStatus.FORBIDDEN, b"This page is for this machine only.\n")
        elif self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, b"There is one page: /\n")
        else:
            self._page()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal for what matters."""

    def _page(self) -> None:
        try:
            tag, text = self.server.newest()
        except LorafitError as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode())
            return
        if self.headers.get("If-None-Match") == f'"{tag}"':
            self._answer(HTTPStatus.NOT_MODIFIED, b"", tag)
        else:
            self._answer(HTTPStatus.OK, text, tag, "text/html; charset=utf-8")

    def _answer(self, status: HTTPStatus, body: bytes, tag: str = "", kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-cache"}
        headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
        headers |= {"Cross-Origin-Resource-Policy": "same-origin"} | ({"ETag": f'"{tag}"'} if tag else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _state(directory: Path) -> str:
    """Changes with every file that the page is made of."""
    stamps = [(name, file.stat().st_mtime_ns, file.stat().st_size) for name in READ
              if (file := directory / name).exists()]  # fmt: skip
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:32]
