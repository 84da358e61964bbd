"""Whole reproductions: run one here, see how far each is, deploy them."""

import argparse
import os

from flows.cli.options import overrides, preset_options


def run_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub)
    sub.add_argument("--mlflow", metavar="URI", help="log to this MLflow server instead of SQLite in MDM_HOME")
    sub.add_argument("--dry-run", action="store_true", help="check everything, show the plan, start nothing")


def run(arguments: argparse.Namespace) -> int:
    from flows.home import embed_services, hold, home, make_home
    from flows.preflight import check_machine
    from mdm.presets import resolve

    changes = overrides(arguments)
    preset = resolve(arguments.preset, changes)
    make_home()
    check_machine(preset)
    if arguments.dry_run:
        from flows.reproduction import run_name, stage_names

        print(f"run {run_name(preset)} in {home() / 'runs'}: " + " → ".join(stage_names(preset)))
        return 0
    embed_services()
    if arguments.mlflow:
        os.environ["MLFLOW_TRACKING_URI"] = arguments.mlflow
    with hold(home() / "run.lock", f"MDM_HOME {home()}"):
        from flows.embedded import run_embedded

        return run_embedded(arguments.preset, changes)


def status_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", nargs="?", help="a run's name or folder (default: list all)")


def status(arguments: argparse.Namespace) -> int:
    from flows.status import list_runs, show_run

    return list_runs() if arguments.run is None else show_run(arguments.run)


def deploy(_: argparse.Namespace) -> int:
    from flows.deploy import deploy_all

    return deploy_all()
