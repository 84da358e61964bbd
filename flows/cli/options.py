"""Options that several verbs share."""

import argparse
import json
from pathlib import Path
from typing import Any

from mdm import choices
from mdm.presets import PRESETS, merge, resolve


def preset_options(sub: argparse.ArgumentParser, name: str = "preset", **preset: Any) -> None:
    sub.add_argument(name, metavar="PRESET", help=", ".join(PRESETS), **preset)
    field_options(sub)


def field_options(sub: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="replace a field (see mdm config); stages.NAME=null leaves a stage out",
    )
    sub.add_argument(
        "--choice",
        action="append",
        default=[],
        metavar="TOPIC=READING",
        help="another reading of the paper (mdm config --choices)",
    )
    sub.add_argument("--config", type=Path, metavar="FILE", help="fields from a file, as mdm config prints them")


def part_of(text: str) -> tuple[int, int]:
    """I/N of --part: one of N equal shares of a work."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form I/N, with I from 1 to N")
    return int(number), int(of)


def overrides(arguments: argparse.Namespace, preset: str = "") -> dict[str, Any]:
    """The fields that --config, --choice and --set replace in the preset, in this order. Raises ValueError."""
    whole: dict[str, Any] = {}
    if arguments.config is not None:
        try:
            whole = json.loads(arguments.config.read_text())
        except OSError as error:
            raise ValueError(f"{arguments.config}: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{arguments.config} is not JSON: {error}") from error
    for chosen in arguments.choice:
        whole = merge(whole, choices.overrides(resolve(preset or arguments.preset, {}), chosen))
    return merge(whole, parse_assignments(arguments.set))


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """``a.b=value`` pairs -> nested fields; values are JSON where they parse as JSON, else strings."""
    tree: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ValueError(f"--set {assignment!r} is not of the form field.name=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        node = tree
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"--set {assignment!r}: {parent} was given a value already")
        node[last] = value
    return tree
