"""The flow's parameters: a preset's name, and any of its fields replaced (a form in the Prefect UI)."""

import dataclasses
import typing
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from mdm.presets import PRESETS, Preset, resolve

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]  # what the form in the Prefect UI offers


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
        value = get_args(hint)[1]
        return dict.__class_getitem__((str, _kind(value) | None if dataclasses.is_dataclass(value) else value))
    return hint


class Overrides(_partial(Preset)):  # type: ignore[misc]
    """Fields to replace; what is left empty stays as the preset has it, and a stage that is null is left out. ``name``
    names the run."""

    def resolve(self, preset: str) -> Preset:
        """The preset with these fields replaced. Raises ValueError naming the field."""
        return resolve(preset, self.model_dump(mode="json", exclude_unset=True))
