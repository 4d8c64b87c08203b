"""`lorafit adapters`: adapters as files, listed, shown, merged, resized, renamed, extracted."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli.adapter_files import (
    combination,
    differing_bases,
    folder_of,
    is_lora_file,
    module_names,
    move,
    numbers,
    opened,
    pair,
    say,
    size_line,
    sizes,
    trained_whole,
    unique,
    words,
    write,
)
from lorafit.cli.options import JsonFlag, expanded
from lorafit.cli.output import Output, open_output
from lorafit.errors import ConfigError

app = typer.Typer(
    name="adapters",
    help="Adapters as files: list, show, merge, resize, rename, extract. No base model is loaded.",
    no_args_is_help=True,
)

ADAPTER_HELP = "A run directory, an adapter's folder, a hub id, or a file of diffusers or kohya."
AdapterArgument = Annotated[str, typer.Argument(metavar="ADAPTER", help=ADAPTER_HELP, show_default=False)]
NewFolder = Annotated[
    Path,
    typer.Option(
        "--output-dir", metavar="DIR", help="A new folder for the adapter.", show_default=False, callback=expanded
    ),
]


@app.command("list")
def list_(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look, some levels deep.")] = Path(),
    json: JsonFlag = False,
) -> None:
    """List the adapters of a folder: base model, rank, targets, size."""
    from lorafit.lora.stored.summary import find_adapters

    with open_output(json) as out:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}: name one that holds adapters or runs")
        found, broken = find_adapters(folder)
        if not out.is_json:
            from lorafit.cli.show_adapters import show_list

            show_list(out.console, folder, found, broken)
        unread = [{"folder": str(path), "reason": reason} for path, reason in broken]
        out.result({"folder": str(folder), "adapters": [each.to_dict() for each in found], "broken": unread})


@app.command()
def show(
    adapter: AdapterArgument,
    modules: Annotated[bool, typer.Option("--modules", help="Each adapted module on a line of its own.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show an adapter: rank, alpha, targets, parameters, size, base, and how large its update is in each module."""
    from dataclasses import asdict, replace

    from lorafit.lora.stored import read_adapter
    from lorafit.lora.stored.summary import module_figures, summary

    with open_output(json) as out, folder_of(adapter) as folder:
        about, figures = summary(folder), module_figures(read_adapter(folder, repair=True))
        if is_lora_file(Path(adapter).expanduser()):
            about = replace(about, folder=Path(adapter))
        if not out.is_json:
            from lorafit.cli.show_adapters import show_adapter

            show_adapter(out.console, about, figures, each_module=modules)
        out.result({**about.to_dict(), "modules": [asdict(each) for each in figures]})


@app.command()
def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help="Run directories, adapter folders or hub ids.")
    ],
    output_dir: NewFolder,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="cat (exact, ranks add up), svd (nearest of the rank), linear, ties, dare_linear, dare_ties, "
            "magnitude_prune; the last four also with _svd.",
        ),
    ] = "svd",
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", metavar="W,W,...", help="A factor for each adapter; 1 each if not given."),
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", metavar="D", help="Share of the values that pruning keeps.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option("--rank", metavar="R", help="Of the result, for svd and *_svd; the largest if not given."),
    ] = None,
    majority_sign: Annotated[
        str, typer.Option("--majority-sign", metavar="BY", help="What ties count: total or frequency.")
    ] = "total",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of what the dare methods drop; 42 if not given.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make one adapter of several, as PEFT's add_weighted_adapter does."""
    import math

    from lorafit.cli.show_adapters import show_merged
    from lorafit.lora.stored import check_free, read_adapter
    from lorafit.lora.stored.merge import merge_adapters

    with open_output(json) as out, ExitStack() as stack:
        check_free(output_dir)
        factors = numbers(weights) if weights else [1.0] * len(adapters)
        how = combination(method, density, rank, majority_sign, seed)
        folders = [str(stack.enter_context(folder_of(name))) for name in adapters]
        stored = {unique(adapters, index): read_adapter(folder) for index, folder in enumerate(folders)}
        merged = merge_adapters(stored, factors, how)
        notices = [*differing_bases(stored), *write(merged.adapter, output_dir, folders)]
        terms = [f"{factor:g} x {name}" for factor, name in zip(factors, stored, strict=True)]
        out.console.print(f"Wrote {output_dir}: {method} of {', '.join(terms)}.", markup=False)
        out.console.print(size_line(merged.adapter), markup=False)
        show_merged(out.console, merged, method)
        say(out, notices)
        out.result(
            {
                "directory": str(output_dir),
                "method": method,
                "adapters": list(stored),
                "weights": factors,
                **sizes(merged.adapter),
                "distance": merged.distance if math.isfinite(merged.distance) else None,
                "taken": merged.taken,
                "notices": notices,
            }
        )


@app.command()
def resize(
    adapter: AdapterArgument,
    rank: Annotated[int, typer.Option("--rank", metavar="R", help="The new, lower rank.", show_default=False)],
    output_dir: NewFolder,
    json: JsonFlag = False,
) -> None:
    """Lower an adapter's rank by SVD and say what was lost."""
    from lorafit.cli.show_adapters import percent
    from lorafit.lora.stored import check_free, read_adapter
    from lorafit.lora.stored.resize import resize as lower

    with open_output(json) as out, folder_of(adapter) as folder:
        check_free(output_dir)
        resized = lower(read_adapter(folder), rank)
        notices = write(resized.adapter, output_dir, [str(folder)])
        worst = max(resized.errors, key=resized.errors.__getitem__)
        out.console.print(f"Wrote {output_dir}: {adapter} with rank {rank}.", markup=False)
        out.console.print(size_line(resized.adapter), markup=False)
        lost = f"{percent(resized.error)} of the update's norm (Frobenius), most in {worst}: "
        out.console.print(f"Lost: {lost}{percent(resized.errors[worst])}.", markup=False)
        say(out, notices)
        figures = {"error": resized.error, "errors": resized.errors, "notices": notices}
        out.result({"directory": str(output_dir), "rank": rank, **sizes(resized.adapter), **figures})


@app.command()
def rename(
    adapter: AdapterArgument,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", metavar="DIR", help="A new folder for the adapter.", callback=expanded),
    ] = None,
    prefix: Annotated[
        list[str] | None,
        typer.Option("--prefix", metavar="OLD=NEW", help="Before the modules' paths; may be empty, and repeated."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="The model it shall fit: the prefixes are found by it.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME", help="The base model to name in the settings.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Only give the adapter's folder this name.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Give an adapter's modules the paths of another model class or version, or the adapter another name.

    Keys that other tools have left odd (wrappers, the adapter's name in them, PEFT's prefix missing) are put right. A
    file of diffusers or kohya becomes a folder in PEFT's format.
    """
    with open_output(json) as out:
        if name is not None:
            if output_dir or prefix or model or base:
                raise ConfigError(
                    "--name renames the folder and nothing in it: use it alone, or --output-dir without it"
                )
            moved = move(adapter, name)
            out.console.print(f"{adapter} is {moved} now.", markup=False)
            out.result({"directory": str(moved)})
            return
        if output_dir is None:
            raise ConfigError("where to? give --output-dir DIR for an adapter with other paths, or --name NAME alone")
        pairs = [pair(text) for text in prefix or ()]
        if pairs and model:
            raise ConfigError("--prefix and --model both say how to rename: give one of them")
        with folder_of(adapter) as folder:
            _rename_modules(adapter, folder, output_dir, pairs, model, base, out)


def _rename_modules(
    adapter: str,
    folder: Path,
    output_dir: Path,
    pairs: list[tuple[str, str]],
    model: str | None,
    base: str | None,
    out: Output,
) -> None:
    """Write the adapter of a folder with other paths: by pairs of prefixes, or by those that fit a model."""
    from dataclasses import replace

    from lorafit.lora.stored import StoredAdapter, check_free, read_adapter
    from lorafit.lora.stored.keys import find_prefixes
    from lorafit.lora.stored.rename import rename_modules

    check_free(output_dir)
    old = read_adapter(folder, repair=True)
    if model:
        pairs = find_prefixes([*old.updates, *trained_whole(old)], module_names(model, out))
    new, changed = rename_modules(old, pairs)
    if base:
        new = StoredAdapter(replace(new.config, base_model_name_or_path=base, revision=None), new.updates, new.whole)
    imported = is_lora_file(Path(adapter).expanduser())
    if not (changed or old.repairs or base or imported):
        raise ConfigError(f"nothing to rename: the paths of {adapter} {'fit ' + model if model else 'are in order'}")
    notices = write(new, output_dir, [str(folder)])
    out.console.print(f"Wrote {output_dir}: {changed} of {len(new.updates)} modules renamed.", markup=False)
    for before, after in pairs:
        out.console.print(f"  {before or '(nothing)'} -> {after or '(nothing)'}", markup=False)
    for repair in old.repairs:
        out.console.print(f"  put right: {repair}", markup=False)
    say(out, notices)
    prefixes = [{"old": before, "new": after} for before, after in pairs]
    changes = {"renamed": changed, "prefixes": prefixes, "repairs": old.repairs, "notices": notices}
    out.result({"directory": str(output_dir), **sizes(new), **changes})


@app.command()
def extract(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The base model: hub id, directory, GGUF file, demo: name.")
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The same model, fully tuned.")],
    output_dir: NewFolder,
    rank: Annotated[int, typer.Option("--rank", metavar="R", min=1, help="Of the adapter.")] = 16,
    target_modules: Annotated[
        list[str] | None,
        typer.Option("--target-modules", metavar="NAMES", help="As in training: names with commas, or all-linear."),
    ] = None,
    modules_to_save: Annotated[
        list[str] | None,
        typer.Option("--modules-to-save", metavar="NAMES", help="Modules to keep whole, such as lm_head or norm."),
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the models' own code.")] = False,
    json: JsonFlag = False,
) -> None:
    """Make an adapter of the difference of two full models, tensor by tensor, and say what it cannot hold."""
    import math

    from lorafit.cli.show_adapters import show_extracted
    from lorafit.lora import LoraConfig
    from lorafit.lora.stored import check_free
    from lorafit.lora.stored.extract import extract as differ
    from lorafit.lora.stored.extract import stored_names

    with open_output(json) as out:
        check_free(output_dir)
        before, read_before = opened(base, trust_remote_code, out)
        after, read_after = opened(tuned, trust_remote_code, out)
        targets = words(target_modules) or ["all-linear"]
        config = LoraConfig(
            r=rank,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            modules_to_save=words(modules_to_save) or None,
            base_model_name_or_path=base,
        )
        total = len({**stored_names(before), **stored_names(after)})
        with out.progress("Comparing tensors", total) as advance:
            found = differ(before, after, config, read_before, read_after, on_parameter=lambda _: advance(1))
        notices = write(found.adapter, output_dir, [])
        show_extracted(out.console, output_dir, size_line(found.adapter), found)
        say(out, notices)
        left_out = {name: share if math.isfinite(share) else None for name, share in found.left_out.items()}
        figures = {"error": found.error, "errors": found.errors, "left_out": left_out}
        out.result({"directory": str(output_dir), "rank": rank, **sizes(found.adapter), **figures})
