"""How a picture looks: whether its axes are named, its texts are whole and apart, and its colors can be told apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
SIGHT = {
    "all colors": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def lab(color: str, sight: np.ndarray) -> np.ndarray:
    """The CIELAB coordinates of a color as someone with this sight sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = TO_XYZ @ np.clip(sight @ linear, 0.0, 1.0) / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(colors: Sequence[str]) -> tuple[float, str, str, str]:
    """The smallest distance (CIE 1976) of two of the colors for any sight, with the sight and the two colors."""
    return min(
        (float(np.linalg.norm(lab(a, matrix) - lab(b, matrix))), sight, a, b)
        for sight, matrix in SIGHT.items()
        for a, b in combinations(colors, 2)
    )


def unnamed_axes(figure: Figure) -> list[str]:
    """The axes with numbers or categories but without a name, as text."""
    canvas_of(figure).draw()  # ticks have no texts before
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            is_shown = any(text.get_text() and text.get_visible() for text in ticks(axes, axis.axis_name))
            above = figure.get_supylabel() if axis.axis_name == "y" else figure.get_supxlabel()
            if is_shown and not axis.get_label_text() and not above:
                found.append(f"{axis.axis_name} of {axes.get_title('left') or axes.get_title()!r}")
    return found


def canvas_of(figure: Figure) -> FigureCanvasAgg:
    """The figure's canvas of pixels."""
    return figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)


def ticks(axes: Axes, name: str) -> list[Text]:
    """The labels of the ticks that are drawn."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    margin = 1e-9 * (high - low)
    drawn = axis.get_tick_params().get(f"label{'bottom' if name == 'x' else 'left'}", True)
    marks = axis.get_major_ticks() if drawn else []
    return [mark.label1 for mark in marks if low - margin <= mark.get_loc() <= high + margin]


def texts_of(figure: Figure) -> Iterator[Text]:
    """All texts of a figure that are drawn."""
    for axes in figure.axes:
        if not axes.axison:
            continue
        yield from ticks(axes, "x")
        yield from ticks(axes, "y")
        yield from (axes.xaxis.label, axes.yaxis.label, axes.title, axes._left_title, *axes.texts)
        yield axes.xaxis.get_offset_text()
        yield from axes.get_legend().get_texts() if axes.get_legend() else ()
    for part in (figure, *figure.subfigs):
        yield from part.texts
        for legend in (child for child in part.get_children() if isinstance(child, Legend)):
            yield from legend.get_texts()


def faults_of(figure: Figure) -> list[str]:
    """Texts that are cut off at the edge of the figure, and pairs of texts that overlap."""
    canvas = canvas_of(figure)
    canvas.draw()
    texts = {id(t): t for t in texts_of(figure) if t.get_text().strip() and t.get_visible()}.values()
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts]
    page, found = figure.bbox, []
    for text, box in boxes:
        if box.x0 < page.x0 - 1 or box.y0 < page.y0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1:
            found.append(f"cut off: {text!r}")
    for (one, a), (two, b) in combinations(boxes, 2):
        if Bbox.intersection(a.padded(-1.0), b.padded(-1.0)) is not None and a.width > 3 and b.width > 3:
            found.append(f"overlap: {one!r} and {two!r}")
    return found
