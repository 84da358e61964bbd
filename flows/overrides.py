"""The flow's parameters: a preset's name, and any of its fields replaced (a form in the Prefect UI)."""

import dataclasses
import json
import typing
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from mdm.presets import Preset, resolve

PresetName = Literal["tiny", "cc12m-256", "cc12m-1024", "cc12m-1024-five", "imagenet-256", "imagenet-256-dropout"]


def _partial(cls: Any) -> type[BaseModel]:
    """A pydantic model of a dataclass in which every field may be left out and no other is admitted."""
    hints = typing.get_type_hints(cls)
    fields: dict[str, Any] = {
        field.name: (_kind(hints[field.name]) | None, Field(default=None)) for field in dataclasses.fields(cls)
    }
    return create_model(f"{cls.__name__}Overrides", __config__=ConfigDict(extra="forbid"), **fields)


def _kind(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _partial(hint)
    if get_origin(hint) is dict:
        return dict.__class_getitem__((str, _kind(get_args(hint)[1])))
    return hint


class Overrides(_partial(Preset)):  # type: ignore[misc]
    """Fields to replace; what is left empty stays as the preset has it. ``name`` names the run."""

    def resolve(self, preset: str) -> Preset:
        """The preset with these fields replaced. Raises ValueError naming the field."""
        return resolve(preset, self.model_dump(mode="json", exclude_unset=True))


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
