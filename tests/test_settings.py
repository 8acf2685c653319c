"""Settings: every problem at once, plain data and back."""

import json
from dataclasses import dataclass, field, replace

import pytest

from xscalemixer.errors import InputError
from xscalemixer.nn.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Part(Settings):
    sides: tuple[int, int] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Whole(Settings):
    size: int
    name: str = "a"
    part: Part = field(default_factory=Part)

    def _problems(self):
        if self.size < 0:
            yield f"size={self.size}; needed 0 or more"
        if not self.name:
            yield "name is empty"


def test_round_trip_through_json():
    config = Whole(size=3, part=Part(sides=[4, 5]))
    assert Whole.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(Whole(size=3, part=Part(sides=(4, 5))))


def test_every_problem_is_named():
    with pytest.raises(InputError, match=r"this Whole cannot be used \(2 problems\)\n  1. size=-1; .*\n  2. name is empty"):
        replace(Whole(size=1), size=-1, name="")


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(InputError, match=r"unknown key 'colour'; known are size, name, part\n.*missing key 'size'"):
        Whole.from_dict({"colour": 1})


def test_unknown_keys_of_a_part_are_named():
    with pytest.raises(InputError, match="this Part cannot be read.*\n.*unknown key 'side'"):
        Whole.from_dict({"size": 1, "part": {"side": 1}})


def test_changes_reach_into_parts():
    whole = Whole(size=1, part=Part(sides=(4, 5)))
    assert whole.changed({"part": {"sides": [6, 7]}}) == Whole(size=1, part=Part(sides=(6, 7)))
    assert whole.changed({"name": "b"}).part is whole.part
    with pytest.raises(InputError, match="this Part cannot be read.*\n.*unknown key 'side'"):
        whole.changed({"part": {"side": 1}})
