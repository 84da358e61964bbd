"""Whole reproductions: run one here, see how far each is, deploy them."""

import argparse
import sys
from typing import TYPE_CHECKING, get_args

from flows.cli.options import overrides, preset_options
from mdm.config import Device

if TYPE_CHECKING:
    from mdm.presets import Preset

DEVICES = get_args(Device)


def run_options(sub: argparse.ArgumentParser) -> None:
    preset_options(sub)
    sub.add_argument("--device", choices=DEVICES, help="where to train; auto: a GPU that is seen (hardware.device)")
    sub.add_argument("--mlflow", metavar="URI", help="log to this MLflow server instead of SQLite in MDM_HOME")
    sub.add_argument("--dry-run", action="store_true", help="check everything, show the plan, start nothing")


def run(arguments: argparse.Namespace) -> int:
    from flows.home import embed_services, hold, home, make_home
    from flows.starting.preflight import check_machine, on_this_machine, unused_gpu
    from mdm.presets import merge, resolve

    changes = overrides(arguments)
    if arguments.device:
        changes = merge(changes, {"hardware": {"device": arguments.device}})
    preset = on_this_machine(resolve(arguments.preset, changes))
    make_home()
    check_machine(preset)
    idle = unused_gpu(preset)
    if idle:
        print(f"mdm: {idle}", file=sys.stderr)
    if arguments.dry_run:
        return _show_plan(preset)
    for line in embed_services(arguments.mlflow):
        print(f"mdm: {line}", file=sys.stderr)
    with hold(home() / "run.lock", f"MDM_HOME {home()}"):
        from flows.starting.embedded import run_embedded

        return run_embedded(arguments.preset, changes)


def _show_plan(preset: "Preset") -> int:
    from flows.home import run_folder
    from flows.reproduction import run_name, stage_names
    from flows.status import stage_states

    name = run_name(preset)
    print(f"run {name} in {run_folder(name)}: " + " → ".join(stage_names(preset)))
    for stage, state, note in stage_states(run_folder(name), preset.stages):
        print(f"  {stage:14} {state:8} {note}")
    return 0


def status_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", nargs="?", help="a run's name or folder (default: list all)")


def status(arguments: argparse.Namespace) -> int:
    from flows.status import list_runs, show_run

    return list_runs() if arguments.run is None else show_run(arguments.run)


def deploy(_: argparse.Namespace) -> int:
    from flows.starting.deploy import deploy_all

    return deploy_all()
