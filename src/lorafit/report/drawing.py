"""matplotlib's figures as SVG that takes its colours and its font from the page around it."""

import logging
import re
import warnings
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ACCENT, NEUTRAL, INK, FAINT, WARN = "#0f766e", "#7b828b", "#40464d", "#d9dcdf", "#b4431f"
VARIABLES = {ACCENT: "--accent", NEUTRAL: "--neutral", INK: "--muted", FAINT: "--line", WARN: "--warn"}
"""Colours to draw with, each of which becomes a CSS variable: light and dark pages give it their own value."""
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
"""Line styles that tell runs apart where two colours do not."""

PIXEL = 1 / 72  # of an inch: SVG's own unit in matplotlib
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lorafit",
    "text.parse_math": False,  # a class may be called "$100"
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 1,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.columnspacing": 1.4,
}
SIZES = {"wide": (760, 300), "narrow": (350, 250)}
SMALL = {"any": (370, 190)}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


def draw(
    name: str, label: str, sizes: Mapping[str, tuple[int, int]], paint: Callable[[Figure, int], None]
) -> dict[str, Markup]:
    """One drawing for each width of the screen.

    Args:
        name: unique on the page; makes the ids inside of the SVG unique.
        label: what a screen reader says.
        sizes: width and height in CSS pixels, by the name of the width.
        paint: draws into an empty figure of so many pixels' width.
    """
    return {width: _svg(f"{name}-{width}", label, size, paint) for width, size in sizes.items()}


def legend_above(axes: Axes, columns: int) -> None:
    """A legend in rows above the axes, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), ncols=columns)


def _svg(name: str, label: str, size: tuple[int, int], paint: Callable[[Figure, int], None]) -> Markup:
    with mpl.rc_context(STYLE), warnings.catch_warnings(), StringIO() as file:
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # the reader's font has it, whatever matplotlib's lacks
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        figure = Figure(figsize=(size[0] * PIXEL, size[1] * PIXEL), layout="constrained")
        figure.get_layout_engine().set(w_pad=2 * PIXEL, h_pad=2 * PIXEL)  # type: ignore[union-attr]
        paint(figure, size[0])
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")]:
            parent.remove(child)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": label, "style": f"max-width:{round(size[0] * 1.15)}px"}
    for element in root.iter():
        _adapt(element, name)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, name: str) -> None:
    """Colours become variables, fonts the page's own, ids unique."""
    for key, value in element.attrib.items():
        if key == "id":
            element.attrib[key] = f"{name}-{value}"
        elif value.startswith("url(#"):
            element.attrib[key] = value.replace("url(#", f"url(#{name}-")
        elif key == f"{{{_XLINK}}}href":
            element.attrib[key] = value.replace("#", f"#{name}-", 1)
        elif key == "style":
            value = re.sub(r"font: (?:\d+ )?([\d.]+px)[^;]*", r"font-size: \1", value)
            value = re.sub(r"font-family: [^;]*;? ?", "", value)
            for colour, variable in VARIABLES.items():
                value = value.replace(colour, f"var({variable})")
            element.attrib[key] = value
