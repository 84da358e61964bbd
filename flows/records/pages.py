"""The pages of finished runs, made again from their folders: no server and no data set is asked."""

from pathlib import Path
from typing import Any

from evaluation.pages.compare import compare
from evaluation.pages.schema import Records, check
from evaluation.pages.sections import sections
from evaluation.report import render, render_comparison
from flows.home import home, run_folder
from mdm.files import load_json, write_json
from mdm.presets import load_preset

RECORDS = Path("report", "records.json")  # in a run's folder


def refresh_page(run: Path, output: Path | None = None, required: bool = False) -> Path | None:
    """Bring what a run's folder alone gives up to date in its records, and make its page.

    A run that has no records yet gets them when its flow ends: None, or ValueError where they are ``required``.
    """
    if not required and not (run / RECORDS).exists():
        return None
    return render(_refreshed(run), output or (run / RECORDS).with_name("index.html"))


def _refreshed(run: Path) -> dict[str, Any]:
    file = run / RECORDS
    if not run.is_dir():
        raise ValueError(f"{run} is no run (`mdm status` lists them)")
    if not file.exists():
        raise ValueError(f"{file} is missing: the run has not ended (`mdm status {run.name}` says how far it is)")
    try:
        records = load_json(file)
    except ValueError as error:
        raise ValueError(f"{error}. Delete it: `mdm run` of the same preset writes it again") from error
    own = [metric["protocol"] for metric in records["metrics"] if metric.get("protocol")]
    records |= sections(load_preset(run / "config.json"), run, records["metrics"], own[0] if own else "embedded")
    write_json(file, records)
    return records


def render_file(records: Path, output: Path | None) -> Path:
    """The page of a records.json that lies anywhere, as it is."""
    return render(load_json(records), output or records.with_name("index.html"))


def newest_run() -> str:
    """The run whose records are the newest."""
    found = sorted((home() / "runs").glob(f"*/{RECORDS}"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise ValueError(f"no run in {home()} has a page yet: `mdm run tiny` makes one")
    return str(found[-1].parents[1])


def compare_runs(runs: list[str], output: Path | None) -> Path:
    """Several runs on one page, with comparison.json beside it. Each is a run, or a records.json."""
    records = [_read(Path(run)) if Path(run).is_file() else _refreshed(run_folder(run)) for run in runs]
    names = [found["run"] for found in records]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must differ in name to stand side by side, got {', '.join(names)}")
    found = compare(records)
    out = output or home() / "reports" / "+".join(names) / "index.html"
    page = render_comparison(found, out)
    write_json(out.with_suffix(".json"), found)
    return page


def _read(records: Path) -> dict[str, Any]:
    """With defaults for what it has not; ValueError naming it and the field that is wrong."""
    try:
        return check(load_json(records), Records).model_dump()
    except ValueError as error:
        raise ValueError(f"{records}: {error}") from error
