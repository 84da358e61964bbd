"""What a run wrote down: into MLflow, onto a page."""

import argparse
from pathlib import Path


def track_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", help="a run's name or folder, one of its stages, or a folder trained alone")


def track(arguments: argparse.Namespace) -> int:
    from flows.home import quiet_services, run_folder, without_secrets

    quiet_services()
    from flows.records.following import record_by_outcome, stages_of
    from flows.records.tracking import Tracker
    from mdm.files import is_locked

    named = run_folder(arguments.run)
    folder, stages = stages_of((named if named.is_dir() else Path(arguments.run)).resolve())
    tracker = Tracker(folder, folder.name, alone=(folder / "metrics.jsonl").exists())
    words = []
    for stage in stages:
        follower, word = record_by_outcome(tracker, stage)
        words.append(word)
        print(f"{follower.folder}: {follower.nimg} images seen, {word}, in {without_secrets(tracker.uri)}")
    if not is_locked(folder / "flow.lock"):
        tracker.settle(words)
    return 0


def report_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help="a run's name or folder, or a records.json (default: the run whose page is the newest)",
    )
    sub.add_argument("-o", "--output", type=Path, help="page to write (default: index.html beside the records)")
    sub.epilog = "Several runs are put side by side on one page, which lies in MDM_HOME/reports."


def report(arguments: argparse.Namespace) -> int:
    from flows.records.pages import compare_runs, newest_run, refresh_page, render_file

    runs: list[str] = arguments.runs or [newest_run()]
    if len(runs) > 1:
        print(compare_runs(runs, arguments.output))
    elif Path(runs[0]).is_file():
        print(render_file(Path(runs[0]), arguments.output))
    else:
        from flows.home import run_folder

        print(refresh_page(run_folder(runs[0]), arguments.output, required=True))
    return 0
