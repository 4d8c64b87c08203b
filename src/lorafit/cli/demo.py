"""`lorafit demo`: a real model learns a real task, in one command."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.cli.options import STOPPED, JsonFlag, MaxSteps, OutputDir
from lorafit.cli.output import Output, open_output

if TYPE_CHECKING:
    from lorafit.evaluate import Sample
    from lorafit.metrics import Measured
    from lorafit.train import Trained

SHOWN = 3  # e-mails with both answers
SPARE_TOKENS = 16  # an answer may be so much longer than any reference; the base model often never ends
FEW_STEPS, FEW_EMAILS = 20, 8  # a trial of fewer steps than this answers fewer e-mails


def demo(output_dir: OutputDir = None, max_steps: MaxSteps = None, json: JsonFlag = False) -> None:
    """Teach Gemma 3 270M to turn messy customer e-mails into JSON, and show what it gained.

    Trains on e-mails from a generator, then answers 64 others, whose names, products and phrasings never occurred in
    training, with the base and with the tuned model.
    """
    import typer

    from lorafit.cli.report import draw_report
    from lorafit.cli.show import show_metrics, show_next, show_samples
    from lorafit.cli.train import run_training
    from lorafit.demo.task import HELD_OUT_ROWS, write_demo_data
    from lorafit.run import free_directory
    from lorafit.train.memory import peak_memory_bytes

    with open_output(json) as out:
        started = time.monotonic()
        directory = output_dir or free_directory(Path("runs") / "demo")
        train_file, held_out_file = write_demo_data(directory.with_name(f"{directory.name}-data"))
        out.console.print(f"Wrote {train_file} and {held_out_file}.", markup=False)
        trained = run_training(_recipe(train_file, directory, max_steps), out)
        result: dict[str, Any] = {"run": str(directory), "state": trained.run.record["state"]}
        if trained.interrupted:
            out.result(result)
            raise typer.Exit(STOPPED)

        count = FEW_EMAILS if max_steps is not None and max_steps < FEW_STEPS else HELD_OUT_ROWS
        metrics, samples = _measure(trained, held_out_file, count, out)
        show_samples(out.console, samples[:SHOWN])
        show_metrics(out.console, metrics, f"{count} held-out e-mails")
        seconds, memory = time.monotonic() - started, peak_memory_bytes()
        out.console.print(
            f"Took {seconds // 60:.0f} min {seconds % 60:.0f} s and at most {memory / 1e9:.1f} GB of memory."
        )
        report = draw_report(trained.run, out)
        show_next(out.console, directory, data=held_out_file, report=report)
        from lorafit.metrics import measured_to_dict

        out.result(
            {
                **result,
                "figures": trained.run.record["figures"],
                "emails": count,
                "metrics": measured_to_dict(metrics),
                "samples": [vars(sample) for sample in samples[:SHOWN]],
                "report": None if report is None else str(report),
                "seconds": seconds,
                "peak_memory_bytes": memory,
            }
        )


def _recipe(train_file: Path, directory: Path, max_steps: int | None) -> Any:
    from lorafit.demo.task import DEMO_RECIPE
    from lorafit.recipe import Recipe

    values: dict[str, Any] = {section: dict(settings) for section, settings in DEMO_RECIPE.items()}
    values["data"] = {**values.get("data", {}), "train_files": [str(train_file)]}
    values["output_dir"] = str(directory)
    if max_steps is not None:
        values["train"]["max_steps"] = max_steps
    return Recipe.model_validate(values)


def _measure(
    trained: "Trained", held_out_file: Path, count: int, out: Output
) -> "tuple[dict[str, Measured], list[Sample]]":
    """Both models' answers to `count` e-mails: valid JSON rate and field accuracy; written into the run."""
    from lorafit.data import normalize, read
    from lorafit.evaluate import Results, as_prompt, sample_answers, scored
    from lorafit.metrics.answers import answer_metric

    rows = normalize(read([str(held_out_file)])).rows[:count]
    prompts = [as_prompt(row, trained.tokenizer, trained.template) for row in rows]
    answers = (answer for prompt in prompts for answer in prompt.references)
    longest = max(len(trained.tokenizer(answer)["input_ids"]) for answer in answers)
    with out.progress("Base against tuned", 2 * count) as on_rows:
        samples = sample_answers(
            trained.model,
            trained.tokenizer,
            prompts,
            stop_token_ids=trained.template.stop_token_ids,
            max_new_tokens=longest + SPARE_TOKENS,
            batch_size=count,
            on_rows=on_rows,
        )
    scores, samples = scored(samples, [answer_metric("json_fields")])
    recipe = trained.run.recipe
    results = Results.of(scores, rows, recipe.evaluate, recipe.train.seed)
    results.write(trained.run.directory, samples)
    return results.metrics, samples
