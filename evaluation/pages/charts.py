"""The charts of a page, as SVG: matplotlib draws shapes and tick labels; names and titles stay in the page, where they
wrap and can be searched.

The colours below are only place-holders that _inline turns into the page's own, which differ by light and dark.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from evaluation.pages.schema import Curve, MetricRow

INK, RULE = "#010101", "#020202"
SERIES_COLOURS = 6
PLACE_HOLDERS = {INK: "var(--muted)", RULE: "var(--rule)"} | {
    f"#0303{i:02d}": f"var(--series-{i})" for i in range(SERIES_COLOURS)
}
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (8, 2))]
MARKED = 24  # a line of no more points shows them
WIDTH_PX = 340  # the width of a phone's column, so that 11 px of text are 11 px there
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mdm",
    "font.size": 11,
    "text.parse_math": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.linewidth": 1,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
}


def draw_curve(curve: Curve, chart_id: str) -> Markup:
    """Lines over images seen; the i-th series has the colour ``--series-{i mod 6}`` and a dash pattern of its own."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_PX / 72, 210 / 72), layout="constrained")
        axes = figure.subplots()
        for i, series in enumerate(curve.series):
            style = DASHES[i % len(DASHES)]
            marker = "o" if len(series.x) <= MARKED else None
            look: dict[str, Any] = {"color": _series(i), "linestyle": style, "linewidth": 1.7}
            axes.plot(series.x, series.y, marker=marker, markersize=4, gid=f"series{i}", **look)
            crossed = [(y, *ends) for y, ends in zip(series.y, series.x_interval, strict=False) if ends]
            upright = [(x, *ends) for x, ends in zip(series.x, series.y_interval, strict=False) if ends]
            for draw, ends, name in ((axes.hlines, crossed, "crossed"), (axes.vlines, upright, "upright")):
                if ends:
                    draw(*zip(*ends, strict=True), color=_series(i), linewidth=1, gid=f"{name}{i}")
            for x, y, label in zip(series.x, series.y, series.labels, strict=False):
                axes.annotate(_cut(label, 12), (x, y), (4, 4), textcoords="offset points")
        for i, line in enumerate(curve.lines):
            axes.axhline(line.y, color=INK, linewidth=1, linestyle=DASHES[2], gid=f"line{i}")
        if curve.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _thousands(v)))
        axes.grid(axis="y")
        axes.spines[["top", "right", "left"]].set_visible(False)
        names = ", ".join(
            [f"{s.name} (last {number(s.y[-1])})" for s in curve.series] + [line.name for line in curve.lines]
        )
        return _inline(figure, chart_id, curve.title, f"{curve.y_label} over {curve.x_label}: {names}.")


def draw_metric(metric: MetricRow, chart_id: str) -> Markup:
    """One bar per value, the run's own (the first) in colour, with the 95 % interval as a line across its end."""
    with matplotlib.rc_context(STYLE):
        rows = len(metric.values)
        figure = Figure(figsize=(WIDTH_PX / 72, 36 * rows / 72))
        axes = figure.add_axes((0.004, 0, 0.992, 1))
        ends = [0.0, *metric.values.values(), *(end for pair in metric.interval.values() for end in pair)]
        low, high = min(ends), max(ends)
        axes.set_xlim(low, high if high > low else low + 1)
        axes.set_ylim(rows - 0.6, -0.7)
        for i, (what, value) in enumerate(metric.values.items()):
            axes.vlines(0, i - 0.24, i + 0.24, color=INK, linewidth=1)
            axes.barh(i, value, height=0.34, color=_series(0) if i == 0 else _series(5), gid=f"value{i}")
            spread = f" [{', '.join(number(end) for end in metric.interval[what])}]" if what in metric.interval else ""
            for x, side, text in ((0, "left", _cut(what, 30)), (1, "right", number(value) + spread)):
                axes.text(x, i - 0.22, text, ha=side, va="bottom", transform=axes.get_yaxis_transform())
            if what in metric.interval:
                low, high = metric.interval[what]
                axes.hlines(i, low, high, color=INK, linewidth=1.3)
                axes.vlines([low, high], i - 0.13, i + 0.13, color=INK, linewidth=1.3)
        axes.set_axis_off()
        values = ", ".join(f"{what} {number(value)}" for what, value in metric.values.items())
        return _inline(figure, chart_id, metric.label, f"{metric.better} is better: {values}.")


def _inline(figure: Figure, chart_id: str, title: str, description: str) -> Markup:
    """The figure as an <svg> for the page: its ids prefixed by ``chart_id``, its colours the page's, with a spoken
    title and description, without matplotlib's metadata and fixed size."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib only measures with its own font; the reader's device draws the text with one that has the letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg, xlink = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
    ElementTree.register_namespace("", svg)
    ElementTree.register_namespace("xlink", xlink)
    root = ElementTree.fromstring(buffer.getvalue())
    for metadata in root.findall(f"{{{svg}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                value = f"{chart_id}-{value}"
            elif key == f"{{{xlink}}}href":
                value = f"#{chart_id}-{value.removeprefix('#')}"
            value = value.replace("url(#", f"url(#{chart_id}-")
            for place_holder, colour in PLACE_HOLDERS.items():
                value = value.replace(place_holder, colour)
            # The page's own font, in the page's own units (matplotlib counts 72 to the inch, as this viewBox does).
            element.set(key, re.sub(r"font: (\d+)px [^;]+", r"font-size: \1px", value))
    del root.attrib["width"], root.attrib["height"]
    root.attrib.update({"class": "chart", "role": "img", "aria-labelledby": f"{chart_id}-title {chart_id}-desc"})
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        spoken = ElementTree.Element(f"{{{svg}}}{tag}", {"id": f"{chart_id}-{tag}"})
        spoken.text = text
        root.insert(position, spoken)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def number(value: float) -> str:
    """Four significant digits: 1,234 · 12.35 · 0.001235, with a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """As ``number``, with a plus where it is more."""
    return f"+{number(value)}" if value > 0 else number(value)


def _series(i: int) -> str:
    return f"#0303{i % SERIES_COLOURS:02d}"


def _thousands(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size)}{unit}"
    return number(value)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
