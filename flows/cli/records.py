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
    sub.add_argument("records", metavar="RECORDS", type=Path, help="records.json, or a run's name")
    sub.add_argument("-o", "--output", type=Path, help="page to write (default: index.html beside it)")


def report(arguments: argparse.Namespace) -> int:
    from evaluation.report import render
    from flows.home import run_folder
    from mdm.files import load_json

    records = (
        arguments.records
        if arguments.records.is_file()
        else run_folder(str(arguments.records)) / "report" / "records.json"
    )
    print(render(load_json(records), arguments.output or records.with_name("index.html")))
    return 0
