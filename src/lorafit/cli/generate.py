"""`lorafit generate`: one answer of a tuned model."""

import sys
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag, MaxNewTokens, RunArgument, System, Temperature, TopP
from lorafit.cli.output import open_output


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="What to ask; - reads it from stdin.")],
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the sampling.")] = 42,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without the adapter.")] = False,
    json: JsonFlag = False,
) -> None:
    """Answer one prompt with the tuned model, as it was trained: same template, same end of turn."""
    from lorafit.cli.conversation import Conversation
    from lorafit.evaluate.generate import Sampling

    with open_output(json) as out:
        text = sys.stdin.read().strip() if prompt == "-" else prompt
        conversation = Conversation.open(run, system=system)
        conversation.use_base = base
        answer = conversation.answer(
            text,
            on_text=out.write,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_p, seed),
        )
        out.write("\n")
        out.result({"run": str(run), "model": "base" if base else "tuned", "prompt": text, "answer": answer})
