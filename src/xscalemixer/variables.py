"""Variables, schemas and statistics: everything known about a channel stands in one row here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from xscalemixer.errors import SchemaError

__all__ = ["CATALOG", "REGIONAL", "Schema", "Stats", "Variable"]

Role = Literal["state", "static", "diagnostic"]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One physical quantity in its canonical form.

    Attributes
    ----------
    name : str
        Canonical short name (IFS style).
    standard_name, units, long_name : str
        CF standard name, canonical UDUNITS string and a label for plots.
    role : "state", "static" or "diagnostic"
    levels : tuple of int
        Pressure levels in hPa; empty for single-level variables.
    height : float or None
        Height above ground in m that tells homonyms apart (2 for t2m, 10 for u10).
    aliases : tuple of str
        Other names seen in files (compared without regard to case).
    valid_range : (float, float)
        Values outside are refused as wrong units or undecoded data.
    bounds : (float or None, float or None)
        Physical limits enforced on forecasts.
    interval_mean : bool or None
        The value is a mean over the hour that ends at its time stamp; None: that or an instant, as the training data had it.
    """

    name: str
    standard_name: str
    units: str
    long_name: str
    role: Role = "state"
    levels: tuple[int, ...] = ()
    height: float | None = None
    aliases: tuple[str, ...] = ()
    valid_range: tuple[float, float] = (-np.inf, np.inf)
    bounds: tuple[float | None, float | None] = (None, None)
    interval_mean: bool | None = False

    def at(self, levels: Iterable[int]) -> Variable:
        """The same variable on the given pressure levels (hPa)."""
        return replace(self, levels=tuple(int(level) for level in levels))

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names: ``("t2m",)`` or ``("z_500", "z_850")``."""
        return tuple(f"{self.name}_{level}" for level in self.levels) or (self.name,)


# Standard names and units: CF standard name table v83. Aliases: names used by ECMWF, NCEP, CDS, WeatherBench2, CMIP.
_ROWS = (
    Variable(name="t2m", standard_name="air_temperature", units="K", long_name="2 m temperature", height=2.0,
             aliases=("2t", "2m_temperature", "tas", "temperature_2m", "tmp_2maboveground", "air_temperature_2m", "t2", "t_2m"),
             valid_range=(170.0, 345.0)),
    Variable(name="u10", standard_name="eastward_wind", units="m s-1", long_name="10 m eastward wind", height=10.0,
             aliases=("10u", "u10m", "10m_u_component_of_wind", "uas", "wind_u_10m", "ugrd_10maboveground"),
             valid_range=(-100.0, 100.0)),
    Variable(name="v10", standard_name="northward_wind", units="m s-1", long_name="10 m northward wind", height=10.0,
             aliases=("10v", "v10m", "10m_v_component_of_wind", "vas", "wind_v_10m", "vgrd_10maboveground"),
             valid_range=(-100.0, 100.0)),
    Variable(name="q2m", standard_name="specific_humidity", units="kg kg-1", long_name="2 m specific humidity", height=2.0,
             aliases=("sh2", "2sh", "huss", "2m_specific_humidity", "specific_humidity_2m", "spfh_2maboveground", "q2"),
             valid_range=(-1e-4, 0.05), bounds=(0.0, None)),
    Variable(name="sp", standard_name="surface_air_pressure", units="Pa", long_name="surface pressure",
             aliases=("surface_pressure", "ps", "pressure_surface", "pres_surface", "psfc"),
             valid_range=(30e3, 110e3)),
    Variable(name="tcc", standard_name="cloud_area_fraction", units="1", long_name="total cloud cover",
             aliases=("total_cloud_cover", "clt", "tcdc", "total_cloud_cover_atmosphere"),
             valid_range=(-0.01, 1.01), bounds=(0.0, 1.0), interval_mean=None),
    Variable(name="ssrd", standard_name="surface_downwelling_shortwave_flux_in_air", units="W m-2",
             long_name="surface downward short-wave radiation",
             aliases=("rsds", "sdswrf", "dswrf", "avg_sdswrf", "msdwswrf", "mean_surface_downward_short_wave_radiation_flux",
                      "surface_solar_radiation_downwards"),
             valid_range=(-5.0, 1500.0), bounds=(0.0, None), interval_mean=True),
    Variable(name="lcc", standard_name="low_type_cloud_area_fraction", units="1", long_name="low cloud cover", role="diagnostic",
             aliases=("low_cloud_cover", "lcdc"), valid_range=(-0.01, 1.01), bounds=(0.0, 1.0)),
    Variable(name="mcc", standard_name="medium_type_cloud_area_fraction", units="1", long_name="medium cloud cover",
             role="diagnostic", aliases=("medium_cloud_cover", "mcdc"), valid_range=(-0.01, 1.01), bounds=(0.0, 1.0)),
    Variable(name="hcc", standard_name="high_type_cloud_area_fraction", units="1", long_name="high cloud cover",
             role="diagnostic", aliases=("high_cloud_cover", "hcdc"), valid_range=(-0.01, 1.01), bounds=(0.0, 1.0)),
    Variable(name="d2m", standard_name="dew_point_temperature", units="K", long_name="2 m dew point", role="diagnostic",
             height=2.0, aliases=("2d", "2m_dewpoint_temperature", "dew_point_temperature_2m", "dpt_2maboveground", "td2m"),
             valid_range=(150.0, 320.0)),
    Variable(name="r2m", standard_name="relative_humidity", units="1", long_name="2 m relative humidity", role="diagnostic",
             height=2.0, aliases=("r2", "2r", "hurs", "rh2m", "relative_humidity_2m", "2m_relative_humidity", "rh_2maboveground"),
             valid_range=(-0.01, 1.3)),
    Variable(name="ws10", standard_name="wind_speed", units="m s-1", long_name="10 m wind speed", role="diagnostic", height=10.0,
             aliases=("10si", "si10", "ws10m", "10m_wind_speed", "wind_speed_10m", "sfcwind", "ff10"),
             valid_range=(-1e-3, 110.0), bounds=(0.0, None)),
    Variable(name="wd10", standard_name="wind_from_direction", units="degree", long_name="direction the 10 m wind comes from",
             role="diagnostic", height=10.0,
             aliases=("10wdir", "wdir10", "wd10m", "10m_wind_direction", "wind_direction_10m", "wind_from_direction_10m", "dd10"),
             valid_range=(0.0, 360.0)),
    Variable(name="msl", standard_name="air_pressure_at_mean_sea_level", units="Pa", long_name="mean sea level pressure",
             role="diagnostic", aliases=("mean_sea_level_pressure", "prmsl", "psl", "mslma", "pressure_reduced_to_mean_sea_level",
                                         "air_pressure_at_sea_level", "mslp"),
             valid_range=(85e3, 110e3)),
    Variable(name="refc", standard_name="equivalent_reflectivity_factor", units="dBZ", long_name="composite radar reflectivity",
             role="diagnostic", aliases=("composite_reflectivity", "maximum_radar_reflectivity", "max_reflectivity"),
             valid_range=(-60.0, 90.0)),
    Variable(name="pr", standard_name="precipitation_flux", units="kg m-2 s-1", long_name="precipitation", role="diagnostic",
             aliases=("prate", "tprate", "precipitation_rate"), valid_range=(-1e-6, 0.1), bounds=(0.0, None),
             interval_mean=None),
    Variable(name="z", standard_name="geopotential", units="m2 s-2", long_name="geopotential", levels=(500,),
             aliases=("geopotential",), valid_range=(-1.5e4, 6e5)),
    Variable(name="q", standard_name="specific_humidity", units="kg kg-1", long_name="specific humidity", levels=(500,),
             aliases=("specific_humidity", "spfh", "hus"), valid_range=(-1e-4, 0.05), bounds=(0.0, None)),
    Variable(name="u", standard_name="eastward_wind", units="m s-1", long_name="eastward wind", levels=(500,),
             aliases=("u_component_of_wind", "ugrd", "ua"), valid_range=(-200.0, 200.0)),
    Variable(name="v", standard_name="northward_wind", units="m s-1", long_name="northward wind", levels=(500,),
             aliases=("v_component_of_wind", "vgrd", "va"), valid_range=(-200.0, 200.0)),
    Variable(name="t", standard_name="air_temperature", units="K", long_name="temperature", levels=(500,),
             aliases=("temperature", "tmp", "ta"), valid_range=(150.0, 350.0)),
    Variable(name="gh", standard_name="geopotential_height", units="m", long_name="geopotential height", role="diagnostic",
             levels=(500,), aliases=("geopotential_height", "hgt", "zg"), valid_range=(-1500.0, 6e4)),
    Variable(name="r", standard_name="relative_humidity", units="1", long_name="relative humidity", role="diagnostic",
             levels=(500,), aliases=("relative_humidity", "rh", "hur"), valid_range=(-0.1, 1.7)),
    Variable(name="orog", standard_name="surface_altitude", units="m", long_name="orography", role="static",
             aliases=("orography", "hgt_surface", "altitude", "elevation", "topography", "surface_altitude", "hsurf",
                      "surface_geopotential", "geopotential_at_surface", "z_surface", "z_sfc"),
             valid_range=(-500.0, 9000.0)),
    Variable(name="lsm", standard_name="land_area_fraction", units="1", long_name="land-sea mask", role="static",
             aliases=("land_sea_mask", "land_binary_mask", "land", "sftlf", "landmask"),
             valid_range=(-0.01, 1.01), bounds=(0.0, 1.0)),
)  # fmt: skip

CATALOG: Mapping[str, Variable] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Schema:
    """Ordered variables; fixes the channel axis of every tensor.

    Parameters
    ----------
    variables : tuple of Variable
    """

    variables: tuple[Variable, ...]

    @classmethod
    def of(cls, *names: str, levels: Iterable[int] = ()) -> Schema:
        """Build from catalog names; upper-air ones take ``levels`` (hPa).

        >>> Schema.of("t", "t2m", levels=(500, 850)).channels
        ('t_500', 't_850', 't2m')
        """
        rows = (CATALOG[name] for name in names)
        return cls(tuple(row.at(levels) if row.levels else row for row in rows))

    @classmethod
    def of_channels(cls, *channels: str) -> Schema:
        """Build from names of channels, which are put together variable by variable.

        >>> Schema.of_channels("t_500", "t2m", "t_850").channels
        ('t_500', 't_850', 't2m')

        Raises
        ------
        SchemaError
            With every name that is unknown or occurs twice.
        """
        levels: dict[str, list[int]] = {}
        problems = [f"{channel} is named twice" for channel in dict.fromkeys(channels) if channels.count(channel) > 1]
        for channel in dict.fromkeys(channels):
            name, _, level = channel.partition("_")
            if name not in CATALOG or bool(CATALOG[name].levels) != level.isdecimal():
                problems.append(f"{channel!r} is no channel; needed names such as 't2m' or, with a level in hPa, 't_850'")
            levels.setdefault(name, []).extend([int(level)] if level.isdecimal() else [])
        if problems:
            raise SchemaError("these channels cannot be used", problems)
        return cls(tuple(CATALOG[name].at(found) if found else CATALOG[name] for name, found in levels.items()))

    def __str__(self) -> str:
        count = lambda variable: f" ({len(variable.levels)} levels)" if variable.levels else ""
        return ", ".join(f"{variable.name}{count(variable)}" for variable in self.variables)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Flat channel names, variable by variable, level by level."""
        return tuple(channel for variable in self.variables for channel in variable.channels)

    @property
    def names(self) -> tuple[str, ...]:
        """Variable names in order."""
        return tuple(variable.name for variable in self.variables)

    @property
    def levels(self) -> tuple[int, ...]:
        """All pressure levels used, ascending, hPa."""
        return tuple(sorted({level for variable in self.variables for level in variable.levels}))

    def without(self, channels: Iterable[str]) -> Schema:
        """The same schema without some channels; variables on levels keep the others.

        >>> Schema.of("t", "t2m", levels=(500, 850)).without({"t_850", "t2m"}).channels
        ('t_500',)
        """
        gone, left = set(channels), []
        for variable in self.variables:
            if not variable.levels:
                left += [] if variable.name in gone else [variable]
            elif levels := [n for n, name in zip(variable.levels, variable.channels, strict=True) if name not in gone]:
                left.append(variable.at(levels))
        return Schema(tuple(left))

    def __getitem__(self, name: str) -> Variable:
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise KeyError(f"{name!r} is not one of {self.names}")

    def __len__(self) -> int:
        return len(self.channels)

    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Physical lower and upper limit of each channel, shape (C,), infinite where there is none."""
        pairs = [variable.bounds for variable in self.variables for _ in variable.channels]
        lower = np.array([-np.inf if low is None else low for low, _ in pairs], dtype="f4")
        upper = np.array([np.inf if high is None else high for _, high in pairs], dtype="f4")
        return lower, upper

    def to_dict(self) -> list[dict]:
        """Plain data: catalog names and levels."""
        return [{"name": variable.name, "levels": list(variable.levels)} for variable in self.variables]

    @classmethod
    def from_dict(cls, rows: list[dict]) -> Schema:
        """Inverse of `to_dict`.

        Raises
        ------
        SchemaError
            If a row has unknown keys or a name that is not in the catalog.
        """
        problems = []
        for row in rows:
            if set(row) != {"name", "levels"}:
                problems.append(f"row {row} has keys {sorted(row)}; needed 'name' and 'levels'")
            elif row["name"] not in CATALOG:
                problems.append(f"unknown variable {row['name']!r}; known are {', '.join(CATALOG)}")
        if problems:
            raise SchemaError("this schema cannot be read", problems)
        return cls(tuple(CATALOG[row["name"]].at(row["levels"]) for row in rows))


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Mean and standard deviation per channel, in canonical units.

    Attributes
    ----------
    mean, std : dict of float
        Keyed by channel name.
    source : str
        Which data and period they come from.
    reduced : bool
        They are those of fields reduced to sea level, see `xscalemixer.reduction`.
    """

    mean: Mapping[str, float]
    std: Mapping[str, float]
    source: str = ""
    reduced: bool = False

    def arrays(self, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std in the order of ``schema.channels``, shape (C,) each.

        Raises
        ------
        SchemaError
            If any channel has no statistic, or a std that is not positive.
        """
        problems = [f"no mean for {c}" for c in schema.channels if c not in self.mean]
        problems += [f"no std for {c}" for c in schema.channels if c not in self.std]
        problems += [
            f"std of {c} is {self.std[c]}; needed a positive number" for c in schema.channels if not self.std.get(c, 1) > 0
        ]
        if problems:
            raise SchemaError("these statistics do not cover the schema", problems)
        pick = lambda table: np.array([table[c] for c in schema.channels], dtype="f4")
        return pick(self.mean), pick(self.std)

    def to_dict(self) -> dict:
        """Plain data."""
        return {"mean": dict(self.mean), "std": dict(self.std), "source": self.source, "reduced": self.reduced}

    @classmethod
    def from_dict(cls, data: dict) -> Stats:
        """Inverse of `to_dict`; unknown keys are an error."""
        return cls(**data)


REGIONAL = Schema.of("t2m", "u10", "v10", "q2m", "sp", "tcc", "ssrd")
