"""`lorafit chat`: a conversation with a tuned model."""

import contextlib
import shlex
import sys

from lorafit.cli.options import JsonFlag, MaxNewTokens, RunArgument, System, Temperature, TopP
from lorafit.cli.output import open_output
from lorafit.errors import DataError, RunError

HELP = "/base: base or tuned model   /reset: forget the conversation   /quit or Ctrl-D: leave"


def chat(
    run: RunArgument,
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    json: JsonFlag = False,
) -> None:
    """Talk with the tuned model; /base switches to the base model and back."""
    from lorafit.cli.conversation import Conversation
    from lorafit.evaluate.generate import Sampling
    from lorafit.run import Run

    if Run.open(run).recipe.task == "seq2seq":
        raise RunError(
            f"{run} is a sequence-to-sequence model, which writes a target for one source and holds no conversation: "
            f"ask it with `lorafit generate {shlex.quote(str(run))} --prompt '...'`"
        )
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has none, and its console edits lines itself
            import readline  # noqa: F401  (line editing and history in input())

    with open_output(json) as out:
        conversation = Conversation.open(run, system=system)
        out.console.print(HELP, style="dim", markup=False)
        while (line := _read_line(conversation.name)) is not None:
            match line.strip():
                case "":
                    continue
                case "/quit":
                    break
                case "/reset":
                    conversation.reset()
                    out.console.print("The conversation starts anew.", style="dim")
                case "/base":
                    conversation.use_base = not conversation.use_base
                    out.console.print(f"Now answering: the {conversation.name} model.", style="dim")
                case command if command.startswith("/"):
                    out.console.print(f"{command} is not a command. {HELP}", style="dim", markup=False)
                case text:
                    try:
                        conversation.answer(
                            text,
                            on_text=out.write,
                            max_new_tokens=max_new_tokens,
                            sampling=Sampling(temperature, top_p, seed=len(conversation.messages)),
                        )
                    except DataError as error:  # too long, or not what the template takes: the chat goes on
                        out.console.print(f"error: {error}", style="red", markup=False, end="")
                    except KeyboardInterrupt:  # ends the answer, not the chat
                        out.console.print(" (stopped)", style="dim", end="")
                    out.write("\n")
        out.result({"run": str(run), "model": conversation.name, "messages": conversation.messages})


def _read_line(name: str) -> str | None:
    """What the person types; None at Ctrl-D or Ctrl-C."""
    try:
        print(f"{name}> ", end="", flush=True)
        return input()
    except (EOFError, KeyboardInterrupt):
        print()
        return None
