"""``ds.scalemixer``: user syntax; each method is one call to the function that its docstring names."""

from __future__ import annotations

import xarray as xr

import xscalemixer

__all__ = ["DatasetAccessor", "TreeAccessor"]


@xr.register_dataset_accessor("scalemixer")
class DatasetAccessor:
    """Forecasts and ensembles from a Dataset, their scores and pictures; holds nothing but the dataset."""

    def __init__(self, ds: xr.Dataset):
        self._ds = ds

    def check(self, **kwargs):
        """See `xscalemixer.check`."""
        return xscalemixer.check(self._ds, **kwargs)

    def forecast(self, hours: int = 48, **kwargs) -> xr.Dataset:
        """See `xscalemixer.forecast`."""
        return xscalemixer.forecast(self._ds, hours, **kwargs)

    def hindcast(self, init_times, hours: int = 48, **kwargs) -> xr.Dataset:
        """See `xscalemixer.hindcast`."""
        return xscalemixer.hindcast(self._ds, init_times, hours, **kwargs)

    def key_positions(self, **kwargs) -> xr.Dataset:
        """See `xscalemixer.key_positions`."""
        return xscalemixer.key_positions(self._ds, **kwargs)

    def downscale(self, members=16, **kwargs) -> xr.Dataset:
        """See `xscalemixer.downscale`."""
        return xscalemixer.downscale(self._ds, members, **kwargs)

    def finetune(self, model=None, **kwargs):
        """See `xscalemixer.finetune`."""
        return xscalemixer.finetune(self._ds, model, **kwargs)

    def score(self, truth, **kwargs) -> xr.Dataset | xr.DataTree:
        """See `xscalemixer.score`."""
        return xscalemixer.score(self._ds, truth, **kwargs)

    def at_stations(self, stations, **kwargs) -> xr.Dataset:
        """See `xscalemixer.at_stations`."""
        return xscalemixer.at_stations(self._ds, stations, **kwargs)

    def plot(self, *args, **kwargs):
        """See `xscalemixer.plot`."""
        return xscalemixer.plot(self._ds, *args, **kwargs)

    def terrain(self, orography: xr.Dataset | xr.DataArray, **kwargs) -> xr.Dataset:
        """See `xscalemixer.adjust_to_terrain`."""
        return xscalemixer.adjust_to_terrain(self._ds, orography, **kwargs)

    def to_weatherbench2(self) -> xr.Dataset:
        """See `xscalemixer.to_weatherbench2`."""
        return xscalemixer.to_weatherbench2(self._ds)

    def to_cfgrib(self) -> xr.Dataset:
        """See `xscalemixer.to_cfgrib`."""
        return xscalemixer.to_cfgrib(self._ds)

    def to_climpred(self) -> xr.Dataset:
        """See `xscalemixer.to_climpred`."""
        return xscalemixer.to_climpred(self._ds)


@xr.register_datatree_accessor("scalemixer")
class TreeAccessor:
    """Forecasts from, and fine-tuning on, a DataTree with ``/global`` and ``/regional``; holds nothing but the tree."""

    def __init__(self, tree: xr.DataTree):
        self._tree = tree

    def check(self, **kwargs):
        """See `xscalemixer.check`."""
        return xscalemixer.check(self._tree, **kwargs)

    def forecast(self, hours: int = 48, **kwargs) -> xr.Dataset:
        """See `xscalemixer.forecast`."""
        return xscalemixer.forecast(self._tree, hours, **kwargs)

    def hindcast(self, init_times, hours: int = 48, **kwargs) -> xr.Dataset:
        """See `xscalemixer.hindcast`."""
        return xscalemixer.hindcast(self._tree, init_times, hours, **kwargs)

    def key_positions(self, **kwargs) -> xr.Dataset:
        """See `xscalemixer.key_positions`."""
        return xscalemixer.key_positions(self._tree, **kwargs)

    def finetune(self, model=None, **kwargs):
        """See `xscalemixer.finetune`."""
        return xscalemixer.finetune(self._tree, model, **kwargs)
