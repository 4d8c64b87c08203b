"""`lorafit serve`: tuned models behind OpenAI's API."""

from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag
from lorafit.cli.output import open_output
from lorafit.errors import MissingExtraError

Key = Annotated[str | None, typer.Option("--api-key", envvar="LORAFIT_API_KEY", metavar="KEY", show_envvar=True,
                help="What clients must give; needed for any address but this machine's own.")]  # fmt: skip
AdminKey = Annotated[str | None, typer.Option("--admin-key", envvar="LORAFIT_ADMIN_KEY", metavar="KEY",
                     show_envvar=True, help="What POST and DELETE /v1/adapters need; off without one.")]  # fmt: skip


def serve(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs of one base model; or NAME=RUN.")],
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Key = None,
    admin_key: AdminKey = None,
    max_batch: Annotated[int, typer.Option("--max-batch", metavar="N", min=1, help="Answers written together.")] = 16,
    max_queue: Annotated[int, typer.Option("--max-queue", metavar="N", min=1, help="Prompts that may wait.")] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, help="The longest chat answer where none is asked for.")
    ] = 1024,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            "--cache-tokens", metavar="N", min=1, help="Tokens of prompts and answers in memory; else by free memory."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="The most a request may take.")
    ] = 300.0,
    json: JsonFlag = False,
) -> None:
    """Serve tuned models and their base by OpenAI's API, with a chat page; Ctrl-C finishes what runs and ends."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"lorafit serve needs {error.name}: pip install 'lorafit[serve]'") from error
    from lorafit.serve.engine import Limits
    from lorafit.serve.log import log_to
    from lorafit.serve.models import named_runs
    from lorafit.serve.server import access_to, bound, check_address, load_service, url_of
    from lorafit.serve.server import serve as serve_forever

    with open_output(json) as out:
        check_address(host, api_key)
        named = named_runs(runs)
        listener = bound(host, port)  # before the model is loaded: a port in use is known at once
        with listener:
            limits = Limits(max_batch, max_queue)
            service = load_service(named, limits, cache_tokens, seconds=timeout, max_tokens=max_tokens)
            names = [served.name for served in service.models.list()]

            def ready() -> None:
                url = url_of(listener)
                say = out.console.print
                say(f"Serving {names[0]} (base) and {', '.join(names[1:])}", markup=False, soft_wrap=True)
                say(f"  chat page  {url}\n  OpenAI API {url}v1", markup=False, soft_wrap=True)
                say("Ctrl-C finishes what runs and ends.", markup=False)
                out.result(
                    {
                        "url": url,
                        "models": names,
                        "runs": {name: str(run.directory) for name, run in named.items()},
                    }
                )

            log_to()
            serve_forever(service, listener, access_to(listener, api_key, admin_key), ready)
