"""records.json -> one self-contained HTML page: ``python -m evaluation.report records.json -o report.html``.

The page loads nothing and runs nothing (its own content security policy forbids both). Captions come from the web, so
every text is escaped by the template, stripped of control characters, and kept out of the drawn charts; an image is
accepted only as a PNG that decodes. The schema is ``Records`` in ``schema.py``.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.pages.charts import draw_curve, draw_metric, number, signed
from evaluation.pages.schema import Comparison, Curve, Drawn, EvaluationTable, MetricRow, Records, check, decoded_size
from mdm.files import whole_file

PIXELATED_UP_TO_PX = 32  # below this size the pixels themselves are the picture; above, hard edges only disturb


# ---- the page ------------------------------------------------------------------------------------------------------


def render(records: dict[str, Any], out: Path) -> Path:
    """Writes the page to ``out``, and its metrics beside it as CSV (each replaced whole or not at all).

    Returns the page. Raises ValueError as ``check``.
    """
    checked = check(records, Records)
    page = _page(
        "report.html.j2",
        r=checked,
        curve_charts=_charts(checked.curves, "curve"),
        figure_charts=_charts(checked.figures, "figure"),
        metric_charts=[draw_metric(metric, f"metric{i}") for i, metric in enumerate(checked.metrics)],
        longest_s=max((stage.seconds for stage in checked.stages), default=0) or 1,
        total_s=sum(stage.seconds for stage in checked.stages),
    )
    return write_page(out, page, table_csv(_measured(checked)))


def render_comparison(comparison: dict[str, Any], out: Path) -> Path:
    """Writes the page of several runs (``compare.py``) to ``out``, and its numbers beside it. Raises as above."""
    checked = check(comparison, Comparison)
    page = _page("compare.html.j2", c=checked, curve_charts=_charts(checked.curves, "curve"))
    return write_page(out, page, table_csv(_compared(checked)))


def _page(template: str, **fields: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed, duration=duration, date=date)
    environment.globals.update(size_of=decoded_size, pixelated_up_to_px=PIXELATED_UP_TO_PX)
    return environment.get_template(template).render(fields)


def _charts(curves: Sequence[Curve], name: str) -> list[Markup]:
    return [draw_curve(curve, f"{name}{i}") for i, curve in enumerate(curves)]


def write_page(out: Path, page: str, table: str) -> Path:
    """The page, and its numbers beside it as CSV: each whole or not at all.

    Raises ValueError for a name that is no page's.
    """
    out = Path(out)
    if out.is_dir() or out.suffix in (".csv", ".json"):
        raise ValueError(f"-o {out}: no name of a page, beside which lie a .csv and a .json: give FILE.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    for file, text in ((out.with_suffix(".csv"), table), (out, page)):
        with whole_file(file) as whole:
            whole.write(text.encode())
    return out


def table_csv(measured: "Iterable[Measured]") -> str:
    """One line per metric and set. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*_TEXTS, "metric", "set", "stage_nimg", "n", "value", "low", "high", "better"])
    for texts, nimg, metric in measured:
        for what, value in metric.values.items():
            low, high = metric.interval.get(what, ("", ""))
            row = map(_no_formula, (*texts, metric.name, what))
            writer.writerow([*row, nimg, metric.size(what), value, low, high, metric.better])
    return table.getvalue()


_TEXTS = ("run", "protocol", "digest", "stage", "point", "guidance", "steps", "sampler")
Measured = tuple[tuple[str, ...], int | str, MetricRow]  # _TEXTS, images that the stage has seen, and a metric


def _measured(records: Records) -> Iterator[Measured]:
    """Of the run's own samples, and of every point that was evaluated."""
    for metric in records.metrics:
        yield (records.run, metric.protocol, records.digest, "", "", *_way(records.drawn)), "", metric
    yield from _of_tables(records.evaluations, records.run)


def _compared(comparison: Comparison) -> Iterator[Measured]:
    for own in comparison.own:
        for row in own.metrics:
            for run, drawn, metric in zip(own.runs, own.drawn, row, strict=True):
                if metric is not None:
                    yield (run, metric.protocol, own.digest, "", "", *_way(drawn)), "", metric
    yield from _of_tables(comparison.evaluations, "")  # whose rows name their run


def _of_tables(tables: Sequence[EvaluationTable], run: str) -> Iterator[Measured]:
    for table in tables:
        for row in table.rows:
            for metric in row.metrics:
                names = (row.run or run, table.protocol, table.digest, row.stage, row.point)
                yield (*names, *_way(row)), row.nimg, metric


def _way(drawn: Drawn | None) -> tuple[str, str, str]:
    """Nobody wrote down how the samples of records of before were drawn."""
    return ("", "", "") if drawn is None else (drawn.guidance, str(drawn.steps), drawn.sampler)


def _no_formula(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render the records of a run as one HTML page.")
    parser.add_argument("records", type=Path, help="records.json")
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="the page (default: report.html)")
    given = parser.parse_args(arguments)
    try:
        records = json.loads(given.records.read_text(encoding="utf-8"))
        print(render(records, given.out))
    except (OSError, ValueError) as error:
        sys.exit(f"{given.records}: {error}")


if __name__ == "__main__":
    main()
