"""Where the model changed: the size of each layer's learned update beside its weight."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from lorafit.report.blocks import Block, Figure, Section, Table, Text
from lorafit.report.drawing import ACCENT, SIZES, draw

NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.+)")
Cells = dict[tuple[str, int], dict[str, float]]
"""Relative update by (stack, layer number) and kind of module."""


def layers_section(updates: Mapping[str, Any], adapter: bool) -> Section | None:
    """The heat map; a line where the run keeps no norms but has an adapter, None without."""
    if not updates:
        missing = Text(
            "This run keeps no norms of its updates (updates.json): it was trained before there were.", "muted"
        )
        return Section("layers", "Layers", "Where the model changed", [missing]) if adapter else None
    cells, single = relative_updates(updates["layers"])
    blocks: list[Block] = []
    if cells:
        blocks.append(_figure(cells))
    if single:
        rows = [[name, f"{100 * share:.3f} %"] for name, share in single.items()]
        blocks.append(Table("Modules outside of numbered layers", ["module", "update / weight"], rows))
    return Section("layers", "Layers", "Where the model changed", blocks)


def relative_updates(layers: Sequence[Mapping[str, Any]]) -> tuple[Cells, dict[str, float]]:
    """`||BA|| / ||W||` of modules in numbered layers, and of the others by name.

    Modules that share a layer and a kind (experts) count together: the root of their squares' sums.
    """
    squares: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
    single = {}
    for layer in layers:
        update, weight = layer["update_norm"], layer["weight_norm"]
        found = NUMBERED.fullmatch(layer["module"])
        if found is None:
            single[layer["module"]] = _ratio(update, weight)
            continue
        sums = squares[found[1], int(found[2])][re.sub(r"\.\d+\.", ".*.", found[3])]
        sums[0] += update**2
        sums[1] += weight**2
    cells = {
        place: {kind: _ratio(math.sqrt(a), math.sqrt(b)) for kind, (a, b) in kinds.items()}
        for place, kinds in squares.items()
    }
    return cells, single


def short_names(kinds: Sequence[str]) -> dict[str, str]:
    """Each path by as few of its last parts as tell it from the others."""
    names = {}
    for kind in kinds:
        parts = kind.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in kinds) == 1:
                break
        names[kind] = name
    return names


def _figure(cells: Cells) -> Figure:
    kinds = list(dict.fromkeys(kind for row in cells.values() for kind in row))
    short, labels = short_names(kinds), _labels(list(cells))
    top = max(share for row in cells.values() for share in row.values()) or 1.0
    cell = 20 if len(cells) <= 40 else 12  # pixels high
    longest = max(map(len, short.values()))

    def flat(width: int) -> bool:
        """Whether the names fit beside each other."""
        return longest * 7 * len(kinds) < 0.9 * width

    def paint(canvas: Canvas, width: int) -> None:
        axes = canvas.subplots()
        for y, row in enumerate(cells.values()):
            for kind, share in row.items():
                corner = kinds.index(kind) + 0.03, y + 0.05
                axes.add_patch(
                    Rectangle(corner, 0.94, 0.9, facecolor=ACCENT, alpha=0.05 + 0.95 * share / top, linewidth=0)
                )
        axes.set_xlim(0, len(kinds))
        axes.set_ylim(len(cells), 0)
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.xaxis.tick_top()
        axes.set_xticks([i + 0.5 for i in range(len(kinds))], [short[kind] for kind in kinds],
                        rotation=0 if flat(width) else 90)  # fmt: skip
        every = 1 if cell >= 20 else 2
        shown = [i for i in range(len(labels)) if i % every == 0]
        axes.set_yticks([i + 0.5 for i in shown], [labels[i] for i in shown])
        axes.set_ylabel("layer")

    largest = max(((share, place, kind) for place, row in cells.items() for kind, share in row.items()))
    smallest = min(((share, place, kind) for place, row in cells.items() for kind, share in row.items()))
    names = dict(zip(cells, labels, strict=True))

    def told(found: tuple[float, tuple[str, int], str]) -> str:
        return f"{100 * found[0]:.2f} % (layer {names[found[1]]}, {short[found[2]]})"

    note = f"Norm of the update over norm of the weight. Strongest: {told(largest)}; faintest: {told(smallest)}."
    height = 40 + cell * len(cells)
    sizes = {name: (width, height + (0 if flat(width) else 7 * longest)) for name, (width, _) in SIZES.items()}
    label = f"Size of the update of each module by layer. {note}"
    rows = [
        [names[place], *(f"{100 * row[kind]:.2f} %" if kind in row else "-" for kind in kinds)]
        for place, row in cells.items()
    ]
    return Figure(
        "Size of the learned update, by layer and kind of module",
        label,
        draw("layers", label, sizes, paint),
        Table("Update over weight", ["layer", *(short[kind] for kind in kinds)], rows),
        note,
    )


def _labels(places: Sequence[tuple[str, int]]) -> list[str]:
    """Layer numbers; where several stacks have them, with the part of the path that tells the stacks apart."""
    stacks = list(dict.fromkeys(stack for stack, _ in places))
    if len(stacks) == 1:
        return [str(number) for _, number in places]
    parts = {stack: stack.split(".") for stack in stacks}
    shared = set.intersection(*(set(names) for names in parts.values()))
    own = {stack: ".".join(name for name in names if name not in shared) or stack for stack, names in parts.items()}
    return [f"{own[stack]} {number}" for stack, number in places]


def _ratio(update: float, weight: float) -> float:
    return update / weight if weight else 0.0
