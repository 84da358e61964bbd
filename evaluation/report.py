"""records.json -> one self-contained HTML page: ``python -m evaluation.report records.json -o report.html``.

The page loads nothing and runs nothing (its own content security policy forbids both). Captions come from the web, so
every text is escaped by the template, stripped of control characters, and kept out of the drawn charts; an image is
accepted only as a PNG that decodes. The schema is ``Records`` in ``schema.py``.
"""

import argparse
import csv
import io
import json
import re
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from evaluation.schema import Curve, MetricRow, Records, check, decoded_size
from mdm.files import whole_file

PIXELATED_UP_TO_PX = 32  # below this size the pixels themselves are the picture; above, hard edges only disturb


# ---- the page ------------------------------------------------------------------------------------------------------


def render(records: dict[str, Any], out: Path) -> Path:
    """Writes the page to ``out``, and its metrics beside it as CSV (each replaced whole or not at all).

    Returns the page. Raises ValueError as ``check``.
    """
    checked = check(records)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, duration=duration, date=date)
    page = environment.get_template("report.html.j2").render(
        r=checked,
        curve_charts=[draw_curve(curve, f"curve{i}") for i, curve in enumerate(checked.curves)],
        metric_charts=[draw_metric(metric, f"metric{i}") for i, metric in enumerate(checked.metrics)],
        longest_s=max((stage.seconds for stage in checked.stages), default=0) or 1,
        total_s=sum(stage.seconds for stage in checked.stages),
        size_of=decoded_size,
        pixelated_up_to_px=PIXELATED_UP_TO_PX,
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((out.with_suffix(".csv"), metrics_csv(checked)), (out, page)):
        with whole_file(file) as whole:
            whole.write(text.encode())
    return out


def metrics_csv(records: Records) -> str:
    """One line per metric and set. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", "metric", "protocol", "n", "set", "value", "low", "high", "better"])
    for metric in records.metrics:
        for what, value in metric.values.items():
            low, high = metric.interval.get(what, ("", ""))
            texts = [_no_formula(text) for text in (records.run, metric.name, metric.protocol, what)]
            writer.writerow([*texts[:3], metric.n, texts[3], value, low, high, metric.better])
    return table.getvalue()


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def number(value: float) -> str:
    """Four significant digits: 1,234 · 12.35 · 0.001235, with a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """As ``number``, with a plus where it is more."""
    return f"+{number(value)}" if value > 0 else number(value)


def duration(seconds: float) -> str:
    """0.8 s · 12 s · 2 min 05 s · 3 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def date(iso: str) -> str:
    """23 November 2026, 12:50 (with the offset that the text has, if any)."""
    moment = datetime.fromisoformat(iso)
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".strip()


# ---- the charts ----------------------------------------------------------------------------------------------------
# matplotlib draws shapes and tick labels; names and titles stay in the page, where they wrap and can be searched.
# The colours below are only place-holders that _inline turns into the page's own, which differ by light and dark.

INK, RULE = "#010101", "#020202"
SERIES_COLOURS = 6
PLACE_HOLDERS = {INK: "var(--muted)", RULE: "var(--rule)"} | {
    f"#0303{i:02d}": f"var(--series-{i})" for i in range(SERIES_COLOURS)
}
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (8, 2))]
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
            marker = "o" if len(series.x) == 1 else None
            axes.plot(
                series.x, series.y, color=_series(i), linestyle=style, linewidth=1.7, marker=marker, gid=f"series{i}"
            )
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
        names = ", ".join(f"{s.name} (last {number(s.y[-1])})" for s in curve.series)
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


def _series(i: int) -> str:
    return f"#0303{i % SERIES_COLOURS:02d}"


def _thousands(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{number(value / size)}{unit}"
    return number(value)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render the records of a run as one HTML page.")
    parser.add_argument("records", type=Path, help="records.json")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    given = parser.parse_args(arguments)
    if given.out.suffix == ".csv":
        parser.error(f"--out {given.out}: the page needs another name; the metrics are written beside it as .csv")
    try:
        records = json.loads(given.records.read_text(encoding="utf-8"))
        print(render(records, given.out))
    except (OSError, ValueError) as error:
        sys.exit(f"{given.records}: {error}")


if __name__ == "__main__":
    main()
