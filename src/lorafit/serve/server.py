"""The server's process: one address, signals that end it gracefully."""

import contextlib
import dataclasses
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

import psutil
import torch
import uvicorn

from lorafit.errors import ConfigError, RunError
from lorafit.run import Run
from lorafit.serve.api import Service, Settings, create_app
from lorafit.serve.batch import bytes_per_token
from lorafit.serve.engine import Limits
from lorafit.serve.guard import Access
from lorafit.serve.models import Models

CACHE_SHARE = 0.25  # of the free memory for keys and values: while rows join, both they and their copies exist
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def check_address(host: str, api_key: str | None) -> None:
    """Refuse to open the server to others without a key.

    Raises:
        ConfigError: An address that other machines reach, and no key.
    """
    if host not in LOOPBACK and not api_key:
        raise ConfigError(
            f"--host {host} lets other machines in, so a key is needed: set LORAFIT_API_KEY, or --api-key KEY "
            "(which other users of this machine can see in the list of processes)"
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        RunError: The address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise RunError(
            f"{host} port {port} cannot be used ({error.strerror}): choose another, or --port 0 for a free one"
        ) from None


def access_to(listener: socket.socket, api_key: str | None, admin_key: str | None) -> Access:
    """Who may ask at this address: on a loopback address its own names only."""
    host, port = listener.getsockname()[:2]
    hosts = None
    if host in LOOPBACK:
        names = ("127.0.0.1", "localhost", "[::1]")
        hosts = frozenset({f"{name}:{port}" for name in names} | ({*names} if port == 80 else set()))
    return Access(hosts, api_key or None, admin_key or None)


def url_of(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def load_service(
    runs: Mapping[str, Run], limits: Limits, cache_tokens: int | None = None, *, seconds: float, max_tokens: int
) -> Service:
    """Load runs and their base.

    Args:
        runs: By the name they are served under.
        limits: Of the engine; its `cache_tokens` is replaced.
        cache_tokens: None takes what a quarter of the free memory holds.
        seconds: The most that a request may take.
        max_tokens: The longest answer of a chat that does not say.

    Raises:
        LorafitError: A run or its base cannot be loaded, or they do not fit together.
    """
    models = Models(runs)
    if cache_tokens is None:
        cache_tokens = int(free_memory(models.model.device) * CACHE_SHARE / bytes_per_token(models.model))
    limits = dataclasses.replace(limits, cache_tokens=cache_tokens)
    return Service(models, Settings(seconds, max_tokens, limits))


def free_memory(device: torch.device) -> int:
    """Bytes that are free where the model lies."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def serve(
    service: Service, listener: socket.socket, access: Access, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Answer until SIGINT or SIGTERM; what runs is then finished, what waits is refused. A second one ends at once.

    Args:
        service: Loaded.
        listener: Bound; closed afterwards.
        access: Who may ask.
        on_ready: Called when requests are answered.
    """
    server = Server(service, access, on_ready)
    with contextlib.closing(listener):
        server.run(sockets=[listener])
    if not server.started:
        raise RunError("the server could not start; the lines above say why")


class Server(uvicorn.Server):
    """uvicorn, ended by signals as `serve` says.

    Args:
        service: Loaded.
        access: Who may ask.
        on_ready: Called when requests are answered.
    """

    def __init__(self, service: Service, access: Access, on_ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            create_app(service, access),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=int(service.settings.seconds) + 5,
        )
        super().__init__(config)
        self.service, self.on_ready = service, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if self.started:
            self.on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal again afterwards; here a stop that was asked for is a good end."""
        if threading.current_thread() is not threading.main_thread():  # which alone gets signals
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking requests; at the second time, stop at once."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self.service.engine.drain()
