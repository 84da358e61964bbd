import copy
import csv
import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluation.pages.charts import MARKED, number
from evaluation.pages.compare import compare
from evaluation.pages.schema import Records, check
from evaluation.report import date, duration, main, render, render_comparison
from tests.evaluation.chromium import Page, find_chromium
from tests.evaluation.example_records import HOSTILE, beside_13_43, example_records


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    return example_records()


@pytest.fixture(scope="module")
def page_file(records: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(records, tmp_path_factory.mktemp("page") / "new" / "report.html")


class Elements(html.parser.HTMLParser):
    """Every element's name and attributes, and all the text outside <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_loads_and_runs_nothing(page_file: Path) -> None:
    page = page_file.read_text()
    elements = Elements(page).found
    assert {"script", "link", "iframe", "object", "base", "form", "audio", "video"}.isdisjoint({t for t, _ in elements})
    for tag, attributes in elements:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
            assert re.match(r"data:image/png;base64,|#", attributes.get(name) or "#"), (tag, name)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_hostile_text_is_shown_as_text(page_file: Path) -> None:
    elements = Elements(page_file.read_text())
    shown = HOSTILE.replace("\u202e", "")  # the override of the text's direction is gone
    assert elements.text.count(shown) >= 4  # caption, note, stage, fact
    assert shown in {attributes.get("alt") for tag, attributes in elements.found if tag == "img"}
    assert "\u202e" not in page_file.read_text()


def test_hostile_text_everywhere(records: dict[str, Any], tmp_path: Path) -> None:
    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {spoil(k) if key in ("values", "interval") else k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        kept = key in ("image", "state", "better", "created", "second_hand")
        if kept or not isinstance(value, str):
            return value
        return f'{value}</title></svg>"><script>x</script>_\x00\ud800中文😀'

    page = render(spoil(records), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and "\x00" not in page
    assert "中文😀" in page


def test_a_caption_of_a_megabyte_does_not_make_a_page_of_one(records: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(records)
    before = (render(changed, tmp_path / "page.html")).stat().st_size
    changed["grids"][0]["items"][0]["caption"] = "letters " * 131_072
    page = render(changed, tmp_path / "page.html")
    assert page.stat().st_size < before + 2_000 and "lett…" in page.read_text()


def test_ids_are_unique_and_referred_to(page_file: Path) -> None:
    elements = Elements(page_file.read_text()).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    page = page_file.read_text()
    referred = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert {name for pair in referred for name in pair if name} <= set(ids)
    for _, attributes in elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)


def test_same_records_same_page(records: dict[str, Any], page_file: Path, tmp_path: Path) -> None:
    assert render(records, tmp_path / "again.html").read_bytes() == page_file.read_bytes()


def test_a_run_without_results_yet_still_has_a_page(records: dict[str, Any], tmp_path: Path) -> None:
    empty = records | {"facts": [], "stages": [], "curves": [], "metrics": [], "grids": [], "credits": []}
    assert records["verdict"] in Elements(render(empty, tmp_path / "page.html").read_text()).text


def test_the_paper_is_folded_until_something_of_it_was_measured(records: dict[str, Any], tmp_path: Path) -> None:
    def page(paper: dict[str, Any]) -> Elements:
        return Elements(render(records | {"paper": paper}, tmp_path / "page.html").read_text())

    for paper, is_open in ((records["paper"], False), (beside_13_43(), True)):
        elements = page(paper)
        assert [("open" in attributes) for tag, attributes in elements.found if tag == "details"] == [is_open]
        printed = [row["printed"] for table in paper["tables"] for row in table["rows"]]
        assert all(value in elements.text for value in printed)
        assert "mdm run imagenet-256-dropout" in elements.text and "PixelDiT2" in elements.text
        assert ("14.1,in part" in elements.text) == is_open
        assert ("mdm-released, legacy resize: not measured" in elements.text) == is_open
        assert "(3.00 to 4.11)" in elements.text  # as many digits as the number beside it
    assert "20.1,OUT OF range" in page(beside_13_43(20.1)).text
    assert all(attributes.get("scope") for tag, attributes in elements.found if tag == "th")


def test_metrics_stand_beside_the_page_as_csv(records: dict[str, Any], tmp_path: Path) -> None:
    wrong = copy.deepcopy(records)
    wrong["run"] = "=1+2"
    wrong["metrics"][1]["protocol"] = "embedded"
    wrong["metrics"][1]["sizes"] = {"noise": 128}
    page = render(wrong, tmp_path / "page.html")
    with page.with_suffix(".csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [m for table in records["evaluations"] for row in table["rows"] for m in row["metrics"]]
    assert len(rows) == sum(len(metric["values"]) for metric in records["metrics"] + points)
    assert (rows[-1]["stage"], rows[-1]["stage_nimg"], rows[-1]["protocol"]) == ("tiny, stage 64", "8320", "embedded")
    own = rows[len(records["metrics"][0]["values"])]
    assert own == {
        "run": "'=1+2",  # a spreadsheet must not compute it
        "metric": "kid_efficientnet_lite0",
        "protocol": "embedded",
        **dict.fromkeys(("digest", "stage", "point", "guidance", "steps", "sampler", "stage_nimg"), ""),
        **{
            "set": "samples",
            "n": "256",
        },
        "value": "0.2134",
        "low": "0.181",
        "high": "0.246",
        "better": "lower",
    }
    assert rows[0]["low"] == rows[0]["protocol"] == ""
    (noise,) = [row for row in rows if row["set"] == "noise" and row["metric"] == own["metric"]]
    assert noise["n"] == "128"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["title"], None, r"records: title: .*string"),
        (["created"], "yesterday", r"records: created: .*isoformat"),
        (["format"], 2, r"records: format: .*1"),
        (["surprise"], 1, r"records: surprise: Extra"),
        (["stages", 2, "seconds"], "long", r"records: stages\[2\]\.seconds: .*number \(given: 'long'\)"),
        (["stages", 0, "state"], "maybe", r"records: stages\[0\]\.state: .*'done', 'reused' or 'failed'"),
        (["facts", 1], ["alone"], r"records: facts\[1\]: "),
        (["curves", 0, "series", 1, "y"], [1.0], r"records: curves\[0\]\.series\[1\]: .*equally long"),
        (["curves", 0, "series", 0, "y", 3], -1.0, r"records: curves\[0\]: .*log_y is true"),
        (["curves", 1, "series", 0, "y", 3], float("nan"), r"records: curves\[1\]\.series\[0\]\.y\[3\]: .*finite"),
        (
            ["paper", "tables", 0, "rows", 4, "ours"],
            8.0,
            r"records: paper\.tables\[0\]\.rows\[4\]: .*no run, or neither n",
        ),
        (["paper", "since", 0, "second_hand"], ["all"], r"records: paper\.since\[0\]\.second_hand\[0\]: .*'calls'"),
        (["metrics", 0, "values"], {}, r"records: metrics\[0\]\.values: "),
        (["metrics", 1, "interval", "samples"], [2.0, 1.0], r"records: metrics\[1\]: .*'samples'.*above"),
        (["grids", 0, "columns"], 0, r"records: grids\[0\]\.columns: "),
        (["grids", 0, "items", 0, "image"], "https://example.org/x.png", r"\[0\]\.items\[0\]\.image: .*only data:"),
        (["grids", 0, "items", 0, "image"], "data:image/svg+xml;base64,AAAA", r"\.image: .*only data:image/png"),
        (["grids", 0, "items", 0, "image"], 'data:image/png;base64,AA" onerror="x', r"\.image: .*not a PNG"),
        (["grids", 0, "items", 0, "image"], "data:image/png;base64,AAAA", r"\.image: .*not a PNG"),
    ],
)
def test_names_the_malformed_field(records: dict[str, Any], path: list[Any], value: Any, message: str) -> None:
    wrong = copy.deepcopy(records)
    *parents, last = path
    target = wrong
    for key in parents:
        target = target[key]
    target[last] = value
    with pytest.raises(ValueError, match=message):
        check(wrong, Records)


def test_names_the_missing_field(records: dict[str, Any]) -> None:
    wrong = copy.deepcopy(records)
    del wrong["metrics"][1]["better"]
    with pytest.raises(ValueError, match=r"^records: metrics\[1\]\.better: Field required$"):
        check(wrong, Records)


def test_formats() -> None:
    assert [number(x) for x in (0, 12.3456, 0.00123, -0.5, 12345.6)] == [
        "0",
        "12.35",
        "0.00123",
        "\N{MINUS SIGN}0.5",
        "12,346",
    ]
    assert [duration(s) for s in (0.82, 9.96, 59.7)] == ["0.8 s", "10 s", "1 min 00 s"]
    assert [duration(s) for s in (125, 11220)] == ["2 min 05 s", "3 h 07 min"]
    assert date("2026-11-03T02:05:00+00:00") == "3 November 2026, 02:05 UTC"


def test_command_line(records: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "records.json").write_text(json.dumps(records))
    files = [str(tmp_path / "records.json"), "-o", str(tmp_path / "r.html")]
    command = [sys.executable, "-m", "evaluation.report", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert done.stdout.strip() == str(tmp_path / "r.html") and (tmp_path / "r.html").stat().st_size > 10_000
    assert done.stderr == ""
    (tmp_path / "records.json").write_text("{")
    with pytest.raises(SystemExit, match=r"records\.json: Expecting property name"):
        main([str(tmp_path / "records.json")])


# ---- in a real browser ---------------------------------------------------------------------------------------------

DRAWN = {"guidance": "3/2/1", "steps": 24, "sampler": "ddpm quadratic, threshold clip"}
IMAGES_DRAWN = """Promise.all([...document.images].map(i => i.decode()))
  .then(() => [...document.images].map(i => i.naturalWidth))"""
STRIPS_SHOWN = """[...document.images].filter(i => i.naturalWidth > 2 * i.naturalHeight)
  .map(i => i.getBoundingClientRect().width)"""
INSIDE_THE_WINDOW = """[...document.querySelectorAll('main *')].filter(e => !e.closest('table.paper'))
  .every(e => e.getBoundingClientRect().right <= innerWidth + 1)"""
CHARTS_DRAWN = """[...document.querySelectorAll('svg.chart')].map(chart => {
  const box = chart.getBoundingClientRect();
  const shapes = [...chart.querySelectorAll('[id*="-series"], [id*="-value"]')]
    .flatMap(g => [...g.querySelectorAll('path, use')])
    .filter(p => { const b = p.getBoundingClientRect(), s = getComputedStyle(p);
      return b.width + b.height > 1 && (s.stroke !== 'none' || s.fill !== 'none'); });
  const text = [...chart.querySelectorAll('text')].map(t => t.getBoundingClientRect().height);
  return {width: box.width, height: box.height, shapes: shapes.length, smallest_text_px: Math.min(...text)}; })"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on this machine")
    with Page(program) as page:
        yield page


def shapes(series: dict[str, Any]) -> int:
    """A line, and a mark at each point of a short one."""
    return 1 + (len(series["x"]) if len(series["x"]) <= MARKED else 0)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width_px", [360, 1200])
def test_is_drawn(browser: Page, page_file: Path, records: dict[str, Any], width_px: int, dark: bool) -> None:
    browser.open(page_file, width_px, dark)
    assert browser.evaluate("document.title") == records["title"]

    widths = browser.evaluate(IMAGES_DRAWN)
    assert len(widths) == sum(len(grid["items"]) for grid in records["grids"] + records["prompts"])
    assert min(widths) >= 16
    assert min(browser.evaluate(STRIPS_SHOWN)) >= 280  # of five pictures each

    charts = browser.evaluate(CHARTS_DRAWN)
    expected = [len(m["values"]) for m in records["metrics"]]
    expected += [sum(map(shapes, curve["series"])) for curve in records["figures"] + records["curves"]]
    assert [chart["shapes"] for chart in charts] == expected
    assert min(chart["width"] for chart in charts) > 250 and min(chart["height"] for chart in charts) > 60
    assert min(chart["smallest_text_px"] for chart in charts) >= 10

    assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
    assert browser.evaluate(INSIDE_THE_WINDOW)
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == dark


@pytest.fixture(scope="module")
def beside_file(records: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(records | {"paper": beside_13_43()}, tmp_path_factory.mktemp("beside") / "page.html")


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [360, 1200])
def test_the_papers_tables_scroll_within_the_page(browser: Page, beside_file: Path, width_px: int) -> None:
    browser.open(beside_file, width_px)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert browser.evaluate(f"{boxes}.every(b => b.getBoundingClientRect().right <= innerWidth)")
    captions = "[...document.querySelectorAll('.paper caption span')].map(c => c.getBoundingClientRect().right)"
    assert max(browser.evaluate(captions)) <= width_px
    if width_px == 360:
        wide = f"{boxes}.filter(b => !b.querySelector('.stacked'))"
        moved = browser.evaluate(f"{wide}.map(b => {{ b.focus(); b.scrollLeft = 1e4; return b.scrollLeft; }})")
        assert len(moved) == 1 and min(moved) > 0
        assert browser.evaluate("document.activeElement.className") == "scroll"
        shown = "c => [c.getBoundingClientRect().right, getComputedStyle(c, '::before').content]"
        cells = browser.evaluate(f"[...document.querySelectorAll('details .stacked td.n')].map({shown})")
        assert len(cells) > 200 and max(right for right, _ in cells) <= 360  # all of it is in sight, each with its name
        assert {"Paper", "This run", "Difference", "N", "256²"} <= {name.strip('"') for _, name in cells}
    cells = browser.evaluate("[...document.querySelectorAll('.paper td')].map(c => c.scrollWidth - c.clientWidth)")
    assert max(cells) <= 1  # nothing is cut off


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [360, 1200])
def test_runs_side_by_side_fit(browser: Page, records: dict[str, Any], tmp_path: Path, width_px: int) -> None:
    fields = {"settings": {"data.name": "x" * 80}, "samples": [], "digest": "aa", "drawn": DRAWN}
    runs = [records | {"run": name} | fields for name in ("a", "b" * 60)]
    browser.open(render_comparison(compare(runs), tmp_path / "page.html"), width_px)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
    assert browser.evaluate(INSIDE_THE_WINDOW)
    assert len(browser.evaluate(CHARTS_DRAWN)) == len(records["figures"])


@pytest.mark.browser
def test_a_phone_shows_numbers_before_it_is_moved(browser: Page, records: dict[str, Any], tmp_path: Path) -> None:
    fields = {"settings": {}, "samples": [], "digest": "aa", "drawn": DRAWN}
    runs = [records | {"run": name} | fields for name in ("a", "b")]
    browser.open(render_comparison(compare(runs), tmp_path / "page.html"), 390)
    first = "[...document.querySelectorAll('.chain')].map(t => t.querySelector('td.n:has(small)'))"
    found = browser.evaluate(f"{first}.map(cell => cell.getBoundingClientRect().left)")
    assert len(found) > 1 and max(found) < 390 - 40, found
    shown = "c => [c.getBoundingClientRect().right, getComputedStyle(c, '::before').content]"
    cells = browser.evaluate(f"[...document.querySelectorAll('.stacked td')].map({shown})")
    assert len(cells) > 20 and all(right <= 390 and len(name) > 6 for right, name in cells)  # each beside its name


@pytest.mark.browser
def test_the_paper_unfolds_by_the_keyboard(browser: Page, page_file: Path) -> None:
    browser.open(page_file)
    tables = (
        "[...document.querySelectorAll('details .paper')].filter(t => t.checkVisibility({contentVisibilityAuto: true}))"
    )
    assert browser.evaluate(f"{tables}.length") == 0
    browser.evaluate("document.querySelector('summary').focus()")
    for kind in ("keyDown", "keyUp"):
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.call("Input.dispatchKeyEvent", type=kind, **key)
    assert browser.evaluate(f"{tables}.length") == 7


@pytest.mark.browser
def test_colours_differ_from_the_paper(browser: Page, beside_file: Path) -> None:
    """Text and lines keep a contrast of 3 at least (WCAG, graphics and large text), body text 4.5, light and dark."""

    def luminance(colour: str) -> float:
        levels = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in levels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    probe = """[...document.querySelectorAll('p, td, th, figcaption, svg.chart text, [id*="-series"] path')].map(e => {
      const s = getComputedStyle(e); return e.tagName === 'path' ? ['line', s.stroke]
        : ['text', e.closest('svg') ? s.fill : s.color]; })"""
    for dark in (False, True):
        browser.open(beside_file, 1200, dark)
        paper = luminance(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        for kind, colour in browser.evaluate(probe):
            low, high = sorted((paper, luminance(colour)))
            assert (high + 0.05) / (low + 0.05) >= (4.5 if kind == "text" else 3), (dark, kind, colour)


@pytest.mark.browser
def test_prints(browser: Page, page_file: Path, tmp_path: Path) -> None:
    browser.open(page_file, dark=True)
    pdf = browser.pdf(tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 12
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
