"""What every trained model is: networks with a description of themselves; those that forecast also roll a state forward."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from xscalemixer.errors import CheckpointError
from xscalemixer.grids import Grid
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.physics.solar import SOLAR_CONSTANT
from xscalemixer.reduction import to_sea_level
from xscalemixer.relief import Relief
from xscalemixer.state import GROUPS, STATICS, Insolation, State, level_insolation
from xscalemixer.variables import Schema, Stats

__all__ = ["Branch", "ForecastModel", "Input", "Model", "bound", "network_settings", "require_keys"]


_PARTS = ("schema", "grid", "stats")


@dataclass(frozen=True)
class Branch:
    """Data contract of one branch.

    Attributes
    ----------
    schema : Schema
    grid : Grid
    stats : Stats
    statics : tuple of str
        Names of the constant fields of the network, see `state.statics_of`.
    """

    schema: Schema
    grid: Grid
    stats: Stats
    statics: tuple[str, ...] = STATICS[:2]

    def __str__(self) -> str:
        return f"{self.schema} on {self.grid}"

    @property
    def sunlit_scale(self) -> float:
        """W m-2 per unit of normalized insolation: the std of ``ssrd``, without it a quarter of the solar constant."""
        return self.stats.std["ssrd"] if "ssrd" in self.schema.names else SOLAR_CONSTANT / 4

    def scale(self, height: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the fields in physical units over ground of a height (h, w) in m.

        Returns
        -------
        mean, std : array, shape (C,), or (C, h, w) where the statistics are those of reduced fields

        Raises
        ------
        CheckpointError
            If they are, and there are no heights.
        """
        mean, std = self.stats.arrays(self.schema)
        if not self.stats.reduced:
            return mean, std
        if height is None:
            needed = "its statistics are those of fields reduced to sea level; needed orog"
            raise CheckpointError("this model cannot run", [needed])
        offset, factor = to_sea_level(self.schema, height)
        return offset + factor * mean[:, None, None], factor * std[:, None, None]

    def insolation(self, height: np.ndarray) -> Insolation:
        """A function of times (T,) to the mean insolation of the hours that end there, W m-2, shape (T, h, w).

        Of level ground; where the network knows the slopes, of ground of the height (h, w) in m, see `Relief.insolation`.
        """
        return Relief.of(height, self.grid).insolation if "slope" in self.statics else level_insolation(self.grid)

    def to_dict(self) -> dict:
        """Plain data."""
        return {**{name: getattr(self, name).to_dict() for name in _PARTS}, "statics": list(self.statics)}

    @classmethod
    def from_dict(cls, data: dict) -> Branch:
        """Inverse of `to_dict`; unknown keys are an error."""
        if set(data) - {"statics"} != set(_PARTS):
            raise CheckpointError(
                "this model description cannot be read", [f"a branch has keys {sorted(data)}; needed grid, schema, stats"]
            )
        parts = Schema.from_dict(data["schema"]), Grid.from_dict(data["grid"]), Stats.from_dict(data["stats"])
        return cls(*parts, statics=tuple(data.get("statics", STATICS[:2])))  # models of two fields do not name them


@dataclass(frozen=True, kw_only=True)
class Input:
    """Fields that a model starts from.

    Attributes
    ----------
    part : "outer" or "inner"
        Of the state.
    branch : Branch
    hours : int
        Hourly fields up to the start; 1 is the start alone.
    words : str
        What messages call them.
    otherwise : str
        What is done where they are not given; empty: they must be.
    terrain : array, shape (H, W), m, optional
        Surface fields are carried to it from the terrain of the data.
    """

    part: str
    branch: Branch
    hours: int
    words: str
    otherwise: str = ""
    terrain: np.ndarray | None = None

    @property
    def group(self) -> str:
        """Where they are in a tree: "global" or "regional"."""
        return GROUPS[self.part]

    @property
    def nbytes(self) -> int:
        """Bytes of a start."""
        return 4 * self.hours * len(self.branch.schema) * int(np.prod(self.branch.grid.shape))


class Model(ABC):
    """A trained model with its data contract; can be saved and loaded.

    Attributes
    ----------
    kind : str
        In the description of a saved model.
    references : str
        Of the method, for the attributes of what it makes.
    name : str
    about : dict
        Data, period, scores and licence; plain data for the card.
    sha256 : str
        Hash of the weights file; empty for a model that was never saved.
    """

    kind: ClassVar[str]
    references: ClassVar[str]
    name: str
    about: dict
    sha256: str

    # ----------------------------------------------------------------------------------------- what a kind has to tell

    @property
    @abstractmethod
    def modules(self) -> nn.ModuleDict:
        """The networks under the names used in the weights file."""

    @property
    @abstractmethod
    def scales(self) -> tuple[Normalizer, ...]:
        """Normalizers that run beside the networks."""

    @property
    @abstractmethod
    def static(self) -> dict[str, np.ndarray]:
        """Fields without time on the grid of what it makes, shape (h, w) each, canonical units."""

    @property
    @abstractmethod
    def branches(self) -> dict[str, Branch]:
        """Data contracts by what they are of."""

    @property
    @abstractmethod
    def settings(self) -> dict:
        """What this kind has beside a name and ``about``, as plain data."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: dict) -> Self:
        """A model with fresh weights from its description; CheckpointError if it cannot be read."""

    # ---------------------------------------------------------------------------------------------- what all of them do

    def __repr__(self) -> str:
        head = f"{type(self).__name__} {self.name!r}: {self.parameter_count / 1e6:.2f} million parameters ({self.references})"
        return "\n".join([head, *(f"  {words}: {branch}" for words, branch in self.branches.items())])

    def to_dict(self) -> dict:
        """Everything but the weights, as plain data."""
        return {"format": 1, "kind": self.kind, "name": self.name, **self.settings, "about": self.about}

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.modules.parameters())

    def weights_sha256(self) -> str:
        """Hash of the weights in hand, whether they were saved or not."""
        digest = hashlib.sha256()
        for key, value in sorted(self.modules.state_dict().items()):
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path, **options) -> None:
        """Write a folder with weights, description, card and checksums; options as in `xscalemixer.pretrained.save`."""
        from xscalemixer import pretrained

        pretrained.save(self, path, **options)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.modules.parameters()).device

    def to(self, device) -> Self:
        """Move the networks to a device, in place."""
        nn.ModuleList([self.modules, *self.scales]).to(device)
        return self

    def eval(self) -> Self:
        """Switch dropout and the like off."""
        self.modules.eval()
        return self


class ForecastModel(Model):
    """A model that rolls states forward by ``hours`` at a time.

    Attributes
    ----------
    inner : Branch
        What is forecast, and on which grid.
    """

    inner: Branch

    @property
    @abstractmethod
    def hours(self) -> int:
        """Length of a step; a state has at least the hours of the last one."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[Input, ...]:
        """What it starts from; the first one is what the verbs are called on."""

    @abstractmethod
    def begin(self, time: np.datetime64, fields: Mapping[str, Tensor]) -> State:
        """The state at a time, from the fields (1, hours, C, H, W) of the inputs that are there, by part."""

    @abstractmethod
    def step(self, state: State) -> State:
        """One step ahead; both states physical."""

    @torch.inference_mode()
    def rollout(self, state: State, steps: int) -> Iterator[State]:
        """Yield the state after each of some steps."""
        for _ in range(steps):
            state = self.step(state)
            yield state

    def bound(self, inner: Tensor, insolation: Tensor) -> Tensor:
        """Regional fields (B, T, C, h, w) within physical limits, see `bound`."""
        return bound(inner, self.inner, insolation)


def bound(fields: Tensor, branch: Branch, insolation: Tensor) -> Tensor:
    """Physical limits of the variables; no more sunshine at the ground than above the air.

    Where the ground of a branch has slopes, one that faces a low sun may receive more than a level plane above the air does:
    there only the night is dark.

    Parameters
    ----------
    fields : Tensor, shape (..., C, h, w), physical
    branch : Branch
        Of the channels.
    insolation : Tensor, shape (..., h, w), W m-2
        On a level plane at the top of the atmosphere.
    """
    lower, upper = (torch.from_numpy(limit)[:, None, None].to(fields.device) for limit in branch.schema.limits())
    fields = fields.clamp(lower, upper)
    if "ssrd" in branch.schema.names:
        sunshine = fields[..., branch.schema.channels.index("ssrd"), :, :]
        sunshine.clamp_(max=torch.where(insolation > 0, torch.inf, 0.0) if "slope" in branch.statics else insolation)
    return fields


@contextmanager
def network_settings() -> Iterator[None]:
    """Whatever goes wrong while networks are made from a description is a CheckpointError."""
    try:
        yield
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError("this model description cannot be read", [f"network settings: {error}"]) from error


def require_keys(data: Mapping, needed: Iterable[str]) -> None:
    """Check the keys and the format of a description.

    Raises
    ------
    CheckpointError
        For another format version, or missing or unknown keys.
    """
    problems = [f"unknown key {key!r}" for key in sorted(set(data) - set(needed))]
    problems += [f"missing key {key!r}" for key in sorted(set(needed) - set(data))]
    if data.get("format", 1) != 1:
        problems.append(f"format {data['format']}; this version of xscalemixer reads format 1")
    if problems:
        raise CheckpointError("this model description cannot be read", problems)
