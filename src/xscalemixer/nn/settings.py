"""Base of the frozen settings beside the networks: one check that lists every problem, plain data and back."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping

from xscalemixer.errors import InputError

__all__ = ["Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses; lists become tuples, so that settings read from JSON compare equal.

    Subclasses list what is wrong in ``_problems``.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        if problems := list(self._problems()):
            raise InputError(f"this {type(self).__name__} cannot be used", problems)

    def _problems(self) -> typing.Iterator[str]:
        yield from ()

    def to_dict(self) -> dict:
        """Plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> typing.Self:
        """Inverse of `to_dict`.

        Raises
        ------
        InputError
            With every unknown and missing key, or everything wrong with the values.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        needed = {name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING}
        problems = [f"unknown key {key!r}; known are {', '.join(fields)}" for key in data if key not in fields]
        problems += [f"missing key {key!r}" for key in fields if key in needed - set(data)]
        if problems:
            raise InputError(f"this {cls.__name__} cannot be read", problems)
        kinds = typing.get_type_hints(cls)
        return cls(**{key: _nested(kinds[key], value) for key, value in data.items()})

    def changed(self, changes: Mapping[str, typing.Any]) -> typing.Self:
        """Other settings; keys and values in place of settings within these change a part of them.

        Raises
        ------
        InputError
            As `from_dict`.
        """
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        within = lambda name, value: isinstance(own.get(name), Settings) and isinstance(value, Mapping)
        return self.from_dict(
            own | {name: own[name].changed(value) if within(name, value) else value for name, value in changes.items()}
        )


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _nested(kind, value):
    if isinstance(kind, type) and issubclass(kind, Settings) and isinstance(value, dict):
        return kind.from_dict(value)
    return value
