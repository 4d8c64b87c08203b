"""How adapters look in a terminal, in 80 columns."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from lorafit.cli.output import printable

if TYPE_CHECKING:
    from rich.console import Console

    from lorafit.lora.stored.extract import Extracted
    from lorafit.lora.stored.merge import Merged
    from lorafit.lora.stored.summary import ModuleFigures, Summary

SHOWN = 8  # parameters that are named in a list


def show_list(console: "Console", folder: Path, found: "Sequence[Summary]", broken: Sequence[tuple[Path, str]]) -> None:
    """Two lines an adapter: where and what of, rank and size."""
    if not found:
        console.print(f"No adapters in {folder}.", markup=False)
    else:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("adapter\nbase model, targets", overflow="fold", ratio=1)
        for heading in ("rank\nalpha", "parameters\nsize"):
            table.add_column(heading, justify="right", no_wrap=True)
        for one in found:
            name = one.folder.relative_to(folder) if one.folder != folder else one.folder
            where = f"[bold]{_safe(str(name))}[/]\n{_safe(_base(one))}, {_safe(_targets(one))}"
            size = f"{one.parameters:,}\n{one.bytes / 1e6:,.1f} MB"
            table.add_row(where, f"{_span(one.r)}\n{_span(one.lora_alpha)}", size)
        console.print(table)
    for one in found:
        if one.repairs:
            console.print(f"{one.folder}: {'; '.join(one.repairs)}; `lorafit adapters rename` puts it right",
                          style="yellow", markup=False)  # fmt: skip
    for path, reason in broken:
        place = "" if str(path) in reason else f"{path}: "
        console.print(f"Not listed: {place}{reason}", style="yellow", markup=False)


def show_adapter(
    console: "Console", about: "Summary", figures: "Sequence[ModuleFigures]", *, each_module: bool
) -> None:
    """The settings, then how large the update is: by the modules' last names, or of each."""
    lines = {
        "adapter": str(about.folder),
        "base model": about.base or "unnamed",
        "kind": f"{about.variant}, rank {_span(about.r)}, alpha {_span(about.lora_alpha)}",
        "size": f"{about.parameters:,} parameters, {about.bytes / 1e6:,.1f} MB, {', '.join(about.dtypes)}",
    }
    if about.whole:
        lines["trained whole"] = _some(about.whole)
    if about.repairs:
        lines["odd"] = f"{'; '.join(about.repairs)} (`lorafit adapters rename` puts it right)"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for heading, text in lines.items():
        table.add_row(heading, _safe(text))
    console.print(table)
    console.print(_modules(figures) if each_module else _by_name(figures))
    total = math.hypot(*(one.norm for one in figures))
    console.print(f"Norm: Frobenius, of scaling * B A; {total:.4g} over all.", markup=False)


def _modules(figures: "Sequence[ModuleFigures]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("module", overflow="fold", ratio=1)
    for heading in ("rank", "alpha", "scaling", "norm"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in figures:
        table.add_row(_safe(one.module), str(one.r), f"{one.lora_alpha:g}", f"{one.scaling:.4g}", f"{one.norm:.4g}")
    return table


def _by_name(figures: "Sequence[ModuleFigures]") -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("modules", overflow="fold")
    for heading in ("count", "rank", "parameters", "least norm", "largest", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    squared = sum(one.norm**2 for one in figures)
    names = dict.fromkeys(one.module.rpartition(".")[2] for one in figures)
    for name in names:
        own = [one for one in figures if one.module.rpartition(".")[2] == name]
        norms, ranks = [one.norm for one in own], [one.r for one in own]
        share = sum(norm**2 for norm in norms) / squared if squared else 0.0
        table.add_row(
            _safe(name), str(len(own)), _span((min(ranks), max(ranks))), f"{sum(one.parameters for one in own):,}",
            f"{min(norms):.4g}", f"{max(norms):.4g}", f"{share:.0%}",
        )  # fmt: skip
    return table


def show_merged(console: "Console", merged: "Merged", method: str) -> None:
    """How near the result is to the sum of what it was made of, and what could not be summed."""
    if merged.distance < 1e-6:
        text = "It is the weighted sum of the updates"
    elif math.isfinite(merged.distance):
        text = f"It differs from the weighted sum of the updates by {percent(merged.distance)} of its norm"
    else:
        text = "It differs from the weighted sum of the updates, which is zero"
    if merged.distance >= 1e-6 and method in ("linear", "svd"):
        text += f" ({'a larger --rank or ' if method == 'svd' else ''}--method cat is exact)"
    console.print(f"{text}.", markup=False)
    if merged.taken:
        owners = ", ".join(sorted(set(merged.taken.values())))
        console.print(f"Taken whole from {owners}, without a weight: {_some(list(merged.taken))}.", markup=False)


def show_extracted(console: "Console", directory: Path, size: str, found: "Extracted") -> None:
    """What the adapter holds, what its rank loses, and what it cannot hold."""
    console.print(f"Wrote {directory}.", size, sep="\n", markup=False)
    worst = max(found.errors, key=found.errors.__getitem__)
    console.print(
        f"Of the difference in these modules (norm {found.norm:.4g}) the rank loses {percent(found.error)}, most in "
        f"{worst}: {percent(found.errors[worst])}.",
        markup=False,
    )
    if not found.left_out:
        console.print("The models differ in nothing else.", markup=False)
        return
    alike: dict[str, list[float]] = {}
    for name, share in found.left_out.items():
        alike.setdefault(".".join(name.split(".")[-2:]), []).append(share)
    console.print(
        f"Not held: {len(found.left_out)} more parameters that differ. How much, of the base's norm (--modules-to-save "
        "keeps modules whole, --target-modules adapts more, --json names each):",
        style="yellow",
        markup=False,
    )
    for name, shares in sorted(alike.items(), key=lambda item: -max(item[1])):
        most = max(shares)
        text = percent(most) if math.isfinite(most) else "not in both models, of another shape, or zero in the base"
        count = f"{len(shares)} {name}: up to" if len(shares) > 1 else f"{name}:"
        console.print(f"  {count} {text}", markup=False)


def percent(share: float) -> str:
    """With two digits after the point, and what is less said so."""
    return f"{share:.2%}" if share == 0 or share >= 1e-4 else "less than 0.01%"


def _base(one: "Summary") -> str:
    """The base model's name, of a path its last part."""
    base = one.base or "unnamed"
    return Path(base).name if Path(base).is_absolute() else base


def _targets(one: "Summary") -> str:
    """The adapted modules, those of which there are as many together: `18 each of q_proj, v_proj`."""
    by_count: dict[int, list[str]] = {}
    for name, count in one.targets.items():
        by_count.setdefault(count, []).append(name)
    return "; ".join(
        f"{count} {names[0]}" if len(names) == 1 else f"{count} each of {', '.join(names)}"
        for count, names in by_count.items()
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _span(ends: tuple[float, float]) -> str:
    low, high = ends
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _safe(text: str) -> str:
    """For a table that knows markup."""
    from rich.markup import escape

    return escape(printable(text))
