"""What a run wrote down: into MLflow, onto a page."""

import argparse
import json
from pathlib import Path


def track_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="FOLDER", type=Path)


def track(arguments: argparse.Namespace) -> int:
    from flows.home import quiet_services

    quiet_services()
    from flows.tracking import Follower, Tracker, close_by_outcome

    if not (arguments.run / "metrics.jsonl").exists():
        raise ValueError(f"{arguments.run} holds no metrics.jsonl")
    follower = Follower(Tracker(arguments.run, arguments.run.resolve().name), "train", arguments.run)
    follower.finish()
    word = close_by_outcome(follower)
    print(f"{arguments.run}: {follower.nimg} images seen, {word}, in {follower.tracker.uri}")
    return 0


def report_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("records", metavar="RECORDS", type=Path, help="records.json, or a run's name")
    sub.add_argument("-o", "--output", type=Path, help="page to write (default: index.html beside it)")


def report(arguments: argparse.Namespace) -> int:
    from evaluation.report import render
    from flows.home import run_folder

    records = (
        arguments.records
        if arguments.records.is_file()
        else run_folder(str(arguments.records)) / "report" / "records.json"
    )
    print(render(json.loads(records.read_text()), arguments.output or records.with_name("index.html")))
    return 0
