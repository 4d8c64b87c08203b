"""`lorafit generate`: one answer of a tuned model, or one picture."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag, MaxNewTokens, RunArgument, System, Temperature, TopP, expanded, refuse_given
from lorafit.cli.output import open_output

OF_TEXTS = ("system", "max_new_tokens", "temperature", "top_p")
OF_PICTURES = (
    "output", "negative_prompt", "steps", "guidance_scale", "height", "width", "adapter", "weights",
)  # fmt: skip
SAMPLING_SEED = 42


def generate(
    context: typer.Context,
    run: RunArgument,
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", help="What to ask, or to draw; - reads it from stdin.")
    ],
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="Of the sampling (42), or of a picture's noise (that of the run's samples)."
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base model, without the adapter.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Pictures: the file to write, such as picture.png.", callback=expanded
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", metavar="TEXT", help="Pictures: what to stay away from.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Pictures: denoising steps.")] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", metavar="G", min=0.0, help="Pictures: how closely to follow the prompt."),
    ] = None,
    height: Annotated[int | None, typer.Option("--height", metavar="PIXELS", min=8, help="Pictures.")] = None,
    width: Annotated[int | None, typer.Option("--width", metavar="PIXELS", min=8, help="Pictures.")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="ADAPTER",
            help="Pictures: in place of the run's best, a step of its checkpoints, another run, a folder, a file of "
            "diffusers or kohya; several add up.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="W,W,...", help="Pictures: a factor for each adapter; 1 if not given."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Answer one prompt with the tuned model, as it was trained, or draw one picture."""
    from lorafit.recipe import PICTURES
    from lorafit.run import Run

    with open_output(json) as out:
        opened = Run.open(run)
        text = sys.stdin.read().strip() if prompt == "-" else prompt
        if opened.recipe.task == PICTURES:
            refuse_given(context, OF_TEXTS, "texts, and this run's model draws pictures")
            from lorafit.cli.adapter_files import numbers
            from lorafit.cli.draw import draw_picture
            from lorafit.diffusion.draw import Drawing

            drawing = Drawing(text, negative_prompt, seed, steps, guidance_scale, height, width)
            factors = numbers(weights) if weights else []
            draw_picture(out, opened, drawing, output, adapters=adapter or [], weights=factors, base=base)
            return
        refuse_given(context, OF_PICTURES, "pictures, and this run's model writes text")
        from lorafit.cli.conversation import Conversation
        from lorafit.evaluate.generate import Sampling

        conversation = Conversation.open(run, system=system)
        conversation.use_base = base
        answer = conversation.answer(
            text,
            on_text=out.write,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_p, SAMPLING_SEED if seed is None else seed),
        )
        out.write("\n")
        out.result({"run": str(run), "model": "base" if base else "tuned", "prompt": text, "answer": answer})
