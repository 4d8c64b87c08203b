"""What Prometheus reads at `/metrics`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
        running: Rows in the batch now.
        waiting: Jobs in the queue now.
        adapters: Adapters loaded now.
    """

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int], adapters: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "lorafit_requests", "Requests by endpoint, model and status.", ["endpoint", "model", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "lorafit_request_seconds", "Time of whole requests.", ["endpoint"], buckets=SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "lorafit_first_token_seconds", "Time to the first text of an answer.", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("lorafit_prompt_tokens", "Tokens read.", ["model"], registry=registry)
        self.completion_tokens = Counter("lorafit_completion_tokens", "Tokens written.", ["model"], registry=registry)
        self.step_seconds = Histogram(
            "lorafit_step_seconds", "Time of a step of the batch.", buckets=SECONDS, registry=registry
        )
        self.step_rows = Histogram(
            "lorafit_step_rows", "Answers in a step.", buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        for name, text, value in (
            ("lorafit_running_rows", "Answers being written.", running),
            ("lorafit_waiting_jobs", "Prompts in the queue.", waiting),
            ("lorafit_adapters", "Adapters loaded.", adapters),
        ):
            Gauge(name, text, registry=registry).set_function(value)

    def step(self, rows: int, seconds: float) -> None:
        """Count a step of the engine."""
        self.step_rows.observe(rows)
        self.step_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
