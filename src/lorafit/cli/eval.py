"""`lorafit eval`: base against tuned on held-out rows."""

from typing import Annotated

import typer

from lorafit.cli.options import JsonFlag, RunArgument
from lorafit.cli.output import open_output
from lorafit.errors import RunError


def eval(
    run: RunArgument,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Other rows than those the run held out; may be repeated."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Measure what a run gained: loss, perplexity and accuracy with intervals, and answers side by side.

    The figures for the run's own held-out rows go into its eval.json and samples.jsonl.
    """
    from lorafit.cli.show import show_evaluation
    from lorafit.evaluate import evaluate, held_out_rows
    from lorafit.train import Run
    from lorafit.train.fit import fingerprint

    with open_output(json) as out:
        opened = Run.open(run)
        recipe = opened.recipe
        model, tokenizer, template = opened.load_model()
        prepared = held_out_rows(recipe, tokenizer, template, data or [])
        if not data and fingerprint(prepared.train) != opened.record["data"]["rows_sha256"]:
            raise RunError(
                "the data is not what the run was trained on, so rows held out now may have been trained on then. "
                "Restore the files, or give rows of their own with --data"
            )
        rows = prepared.held_out_rows
        with out.progress("Base against tuned", 2 * (len(rows) + recipe.evaluate.samples)) as on_rows:
            evaluation = evaluate(
                model,
                tokenizer,
                template,
                prepared.held_out,
                rows,
                settings=recipe.evaluate,
                seed=recipe.train.seed,
                history=[] if data else opened.metrics(),
                on_rows=on_rows,
            )
        if not data:
            evaluation.write(opened.directory)
        show_evaluation(out.console, evaluation)
        out.result({"run": str(run), **evaluation.to_dict()})
