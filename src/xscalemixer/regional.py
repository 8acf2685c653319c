"""A forecaster of a region alone: some hours of its own fields in, the next ones out, rolled further on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xscalemixer.errors import CheckpointError
from xscalemixer.model import Branch, ForecastModel, Input, network_settings, require_keys
from xscalemixer.nn.blocks import Normalizer
from xscalemixer.nn.met2net import Met2Net, Met2NetConfig
from xscalemixer.state import HOUR, State, inner_insolation, level_insolation

__all__ = ["RegionalForecaster", "Statics"]


class Statics(nn.Module):
    """Fields without time that travel with the weights.

    Parameters
    ----------
    fields : dict of array, shape (h, w)
        By catalog name, canonical units.
    """

    def __init__(self, fields: Mapping[str, np.ndarray]):
        super().__init__()
        for name, values in fields.items():
            self.register_buffer(name, torch.as_tensor(np.asarray(values, "f4")))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {name: values.cpu().numpy() for name, values in self.named_buffers()}


@dataclass(repr=False)
class RegionalForecaster(ForecastModel):
    """`Met2Net` on the hourly fields of a region (or of the whole globe), without a driver.

    Attributes
    ----------
    name : str
    network : Met2Net
    inner : Branch
    statics : Statics
        Orography and land fraction, where the training data had them.
    about : dict
        Data, period, scores and licence; plain data for the card.
    sha256 : str
        Hash of the weights file; empty for a model that was never saved.
    """

    kind: ClassVar[str] = "regional"
    references: ClassVar[str] = "Met2Net, arXiv:2507.17189"

    name: str
    network: Met2Net
    inner: Branch
    statics: Statics = field(default_factory=lambda: Statics({}))
    about: dict = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self):
        self.eval()

    # ---------------------------------------------------------------------------------------------------- description

    @property
    def branches(self) -> dict[str, Branch]:
        """The region."""
        return {"regional, hourly": self.inner}

    @property
    def settings(self) -> dict:
        """Network, data contract and what else it takes to use them, as plain data."""
        return {
            "network": self.network.config.to_dict(),
            "inner": self.inner.to_dict(),
            "statics": sorted(self.static),
        }

    @classmethod
    def from_dict(cls, data: dict) -> RegionalForecaster:
        """A model with fresh weights from its description.

        Raises
        ------
        CheckpointError
            For another format version, missing or unknown keys, or settings that no network has.
        """
        require_keys(data, ("format", "kind", "name", "network", "inner", "statics", "about"))
        inner = Branch.from_dict(data["inner"])
        with network_settings():
            network = Met2Net(Met2NetConfig.from_dict(data["network"]))
        if network.config.channels != len(inner.schema):
            found = f"a network of {network.config.channels} channels for the {len(inner.schema)} of its schema"
            raise CheckpointError("this model description cannot be read", [f"{found}; needed the same number"])
        statics = Statics({name: np.zeros(inner.grid.shape) for name in data["statics"]})
        return cls(data["name"], network, inner, statics, about=data["about"])

    @property
    def modules(self) -> nn.ModuleDict:
        """Network and static fields under the names used in the weights file."""
        return nn.ModuleDict({"network": self.network, "statics": self.statics})

    @property
    def scale(self) -> Normalizer:
        """The normalizer, on the device of the weights, with which the heights of the region come."""
        return Normalizer(*self.inner.scale(self.static.get("orog"))).to(self.device)

    @property
    def scales(self) -> tuple[Normalizer, ...]:
        """None."""
        return ()

    @property
    def static(self) -> dict[str, np.ndarray]:
        """Orography (m) and land fraction, where they are known, shape (h, w) each."""
        return self.statics.arrays

    # -------------------------------------------------------------------------------------------------------- running

    @property
    def hours(self) -> int:
        """Length of a step: the future frames of the network."""
        return self.network.config.future

    @property
    def inputs(self) -> tuple[Input, ...]:
        """As many hours of the region as the network has past frames."""
        past, terrain = self.network.config.past, self.static.get("orog")
        return (Input(part="inner", branch=self.inner, hours=past, words="hourly fields", terrain=terrain),)

    def begin(self, time: np.datetime64, fields: Mapping[str, Tensor]) -> State:
        """The state at a time."""
        return State(time, None, fields["inner"])

    def step(self, state: State) -> State:
        """One step ahead; the state keeps what the next step starts from, and all hours of this one.

        Parameters
        ----------
        state : State
        """
        past, future = self.network.config.past, self.hours
        scale = self.scale
        ahead = scale.inverse(self.network(scale(state.inner[:, -past:])).float())
        sun = inner_insolation(state.time, level_insolation(self.inner.grid), 1, future).to(self.device)
        hours = torch.cat([state.inner, self.bound(ahead, sun)], 1)[:, -max(past, future) :]
        return State(state.time + future * HOUR, None, hours)
