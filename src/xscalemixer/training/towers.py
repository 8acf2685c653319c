"""What a frozen global network says of each training sample, computed once and kept on disk.

Only where the region does not answer (couplings other than "two_way"): there the global branch of a sample is the same in every
epoch, roll-outs included.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from xscalemixer.errors import InputError
from xscalemixer.nn.scalemixer import CoupledModel
from xscalemixer.progress import progress_bar
from xscalemixer.samples import Windows
from xscalemixer.training.checkpoints import write_tensors
from xscalemixer.training.ranks import Ranks

__all__ = ["TowerCache", "WithTower"]

log = logging.getLogger(__name__)


class WithTower(Dataset):
    """Windows with ``tower_tokens`` (steps, blocks, N_g, d) and ``tower_state`` (steps, C_g, H, W) from files, one per sample."""

    def __init__(self, windows: Windows, folder: Path):
        self.windows, self.folder = windows, folder

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        return {**self.windows[item], **safetensors.torch.load_file(self.file(item))}

    def file(self, item: int) -> Path:
        """Named by the time that the sample starts from."""
        start = self.windows.outer.time[self.windows.starts[item][0]]
        return self.folder / f"{str(start)[:16].replace(':', '')}.safetensors"


class TowerCache:
    """A folder of towers; one inside for each set of weights, data, number of steps and precision.

    Parameters
    ----------
    folder : Path
    network : CoupledModel
        Its global branch is frozen.
    ranks : Ranks
        Each process computes its share.
    batch : int
        Samples that are computed together.
    """

    def __init__(self, folder: Path, network: CoupledModel, ranks: Ranks, *, batch: int):
        self.folder, self.ranks, self.batch = folder, ranks, batch
        self.network = copy.deepcopy(network).to(ranks.device).eval()
        weights = hashlib.sha256(json.dumps(network.config.to_dict()["outer"]).encode())
        for name, value in sorted(network.outer.state_dict().items()):
            weights.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        self.weights = weights.hexdigest()

    def of(self, windows: Windows, data: str, *, precision: str) -> WithTower:
        """Windows with their towers, which are computed where they are not on disk yet.

        Parameters
        ----------
        windows : Windows
        data : str
            Tells data and statistics from others.
        precision : "bf16" or "fp32"

        Raises
        ------
        InputError
            If the disk cannot hold them.
        """
        key = hashlib.sha256(f"{self.weights} {data} {windows.steps} {precision} {self.network.config.exchanges}".encode())
        samples = WithTower(windows, self.folder / key.hexdigest()[:16])
        samples.folder.mkdir(parents=True, exist_ok=True)
        missing = [item for item in range(len(windows)) if not samples.file(item).exists()]
        self.ranks.wait()  # every process has looked before any writes
        mine = missing[self.ranks.rank :: self.ranks.count]
        bar = progress_bar(len(mine), "sample", "global network", None if self.ranks.first else False)
        with bar, torch.inference_mode():
            for first in range(0, len(mine), self.batch):
                self._compute(samples, mine[first : first + self.batch], len(mine) - first, precision)
                bar.update(len(mine[first : first + self.batch]))
        self.ranks.wait()
        log.info("global network of %d samples in %s, %d of them new", len(windows), samples.folder, len(missing))
        return samples

    def _compute(self, samples: WithTower, items: list[int], remaining: int, precision: str) -> None:
        batch = default_collate([samples.windows[item] for item in items])
        state, forcing = batch["outer"][:, 0].to(self.ranks.device), batch["outer_forcing"].to(self.ranks.device)
        tokens, states = [], []
        for step in range(samples.windows.steps):
            with torch.autocast(state.device.type, torch.bfloat16, enabled=precision == "bf16"):
                tower = self.network.tower(state, forcing[:, step])
            state = tower.state
            tokens.append(tower.tokens)
            states.append(state)
        result = {"tower_tokens": torch.stack(tokens, 1).cpu(), "tower_state": torch.stack(states, 1).cpu()}
        self._require_space(samples.folder, sum(value[0].nbytes for value in result.values()) * remaining)
        for i, item in enumerate(items):
            write_tensors(samples.file(item), {name: value[i].clone() for name, value in result.items()})

    def _require_space(self, folder: Path, needed: int) -> None:
        free = shutil.disk_usage(folder).free
        if needed * self.ranks.count > free:
            found = f"{free / 2**30:.1f} GiB are free, {needed * self.ranks.count / 2**30:.1f} GiB are needed"
            raise InputError(f"{folder} cannot hold the cached global network", [f"{found}. Make room, or leave out cache=True"])
