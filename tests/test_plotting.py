import io

import numpy as np
import pytest
import xarray as xr
from matplotlib.quiver import QuiverKey

from xscalemixer.errors import SchemaError, TimeError
from xscalemixer.grids import Grid
from xscalemixer.output import forecast_dataset
from xscalemixer.plotting import plot, plot_overview
from xscalemixer.variables import REGIONAL

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
GRID = Grid.regular(66, 100, 2, (7, 9))  # middle latitude 60 N, where a degree of latitude is two of longitude
KNOT = 0.514444


@pytest.fixture(autouse=True)
def close_figures():
    yield
    matplotlib.pyplot.close("all")


def forecast(*members):
    """A western wind of 10 m/s that warms from 0 to 10 degC along the longitudes, 1 K more each 6 h."""
    values = {"t2m": 273.15 + np.linspace(0, 10, 9), "u10": 10.0, "v10": 0.0, "q2m": 0.01, "sp": 9e4, "tcc": 0.25, "ssrd": 500.0}
    fields = np.zeros((4, *members, 7, *GRID.shape), dtype="f4")
    for channel, name in enumerate(REGIONAL.names):
        fields[..., channel, :, :] = values[name]
    fields[..., 0, :, :] += np.arange(4).reshape(4, *(1,) * (fields.ndim - 2))
    static = {"orog": np.linspace(0, 1200, 63).reshape(7, 9), "lsm": np.tile([0.0] * 4 + [1.0] * 5, (7, 1))}
    keywords = {"schema": REGIONAL, "grid": GRID, "reference_time": "2001-08-10T00", "lead_time": [6, 12, 18, 24]}
    return forecast_dataset(fields, **keywords, attrs={}, static=static)


@pytest.fixture
def fc():
    return forecast()


def colorbar(ax):
    return ax.collections[0].colorbar


def shown(ax):
    return np.asarray(ax.collections[0].get_array()).reshape(GRID.shape)


def test_map_says_what_when_and_in_which_unit(fc):
    ax = plot(fc, "t2m", 24)
    assert ax.get_title() == "2 m temperature\n2001-08-11 00:00 UTC (+24 h)"
    assert colorbar(ax).ax.get_ylabel() == "°C"
    np.testing.assert_allclose(shown(ax)[0], np.linspace(3, 13, 9), atol=1e-4)


def test_default_is_the_last_lead_time(fc):
    assert "(+24 h)" in plot(fc).get_title()


@pytest.mark.parametrize(
    ("variable", "value", "units"),
    [("sp", 900, "hPa"), ("q2m", 10, "g kg$^{-1}$"), ("tcc", 25, "%"), ("ssrd", 500, "W m$^{-2}$"), ("wind", 10, "m s$^{-1}$")],
)
def test_units_a_forecaster_expects(fc, variable, value, units):
    ax = plot(fc, variable)
    np.testing.assert_allclose(shown(ax), value, rtol=1e-5)
    assert colorbar(ax).ax.get_ylabel() == units


def test_unknown_quantities_keep_their_own_units(fc):
    fc["pblh"] = fc["sp"].assign_attrs(long_name="boundary layer height", units="m")
    ax = plot(fc, "pblh")
    assert ax.get_title().startswith("boundary layer height\n") and colorbar(ax).ax.get_ylabel() == "m"


def test_several_leads_share_one_scale(fc):
    axes = plot(fc, "t2m", [6, 24])
    norms = [ax.collections[0].norm for ax in axes]
    assert (norms[0].vmin, norms[0].vmax) == (norms[1].vmin, norms[1].vmax) == (0, 13)
    assert [ax.get_title() for ax in axes] == ["2001-08-10 06:00 UTC (+6 h)", "2001-08-11 00:00 UTC (+24 h)"]
    assert axes[0].figure.get_suptitle() == "2 m temperature, start 2001-08-10 00:00 UTC"


def test_limits_may_be_given_and_cover_stays_between_0_and_100(fc):
    norm = plot(fc, "t2m", limits=(-20, 40)).collections[0].norm
    assert (norm.vmin, norm.vmax) == (-20, 40)
    norm = plot(fc, "tcc").collections[0].norm
    assert (norm.vmin, norm.vmax) == (0, 100)


def test_degrees_of_longitude_are_narrow_far_north(fc):
    assert plot(fc).get_aspect() == pytest.approx(2)


def test_coast_and_relief_are_drawn_from_the_dataset(fc):
    coast = [c for c in plot(fc).collections if np.array_equal(getattr(c, "levels", []), [0.5])]
    assert coast[0].get_paths()[0].vertices[:, 0] == pytest.approx(107)  # half way between the columns at 106 and 108 E
    relief = [c for c in plot(fc).collections if np.array_equal(getattr(c, "levels", []), [500, 1000])]
    assert len(relief) == 1
    assert len(plot(fc.drop_vars(["orog", "lsm"])).collections) == 1


def test_arrows_point_with_the_wind(fc):
    quiver = next(c for c in plot(fc, "wind").collections if hasattr(c, "U"))
    np.testing.assert_allclose((quiver.U, quiver.V), ([10] * 63, [0] * 63))


def test_barbs_are_in_knots_and_mirrored_in_the_south(fc):
    south = fc.assign_coords(latitude=fc["latitude"] - 120)
    for forecast, mirrored in ((fc, False), (south, True)):
        barbs = next(c for c in plot(forecast, "wind", arrows="barbs").collections if hasattr(c, "u"))
        np.testing.assert_allclose(barbs.u, 10 / KNOT, rtol=1e-5)
        assert np.all(barbs.flip == mirrored)


def test_ensembles_show_their_mean_or_a_member():
    fc = forecast(3)
    fc["t2m"] = fc["t2m"] + 3 * fc["member"]
    mean, last = plot(fc, "t2m", 6), plot(fc, "t2m", 6, member=2)
    assert shown(mean)[0, 0] == pytest.approx(3, abs=1e-4) and shown(last)[0, 0] == pytest.approx(6, abs=1e-4)
    assert "mean of 3 members" in mean.get_title() and "member 2" in last.get_title()


def test_the_users_ax_is_used(fc):
    _, ax = matplotlib.pyplot.subplots()
    assert plot(fc, ax=ax) is ax
    with pytest.raises(TimeError, match=r"2 maps do not fit one ax.*\n.*give one lead_time"):
        plot(fc, "t2m", [6, 12], ax=ax)


def test_only_what_is_drawn_is_computed(fc):
    dask_array = pytest.importorskip("dask.array")

    def one_lead_only(block, block_info=None):
        assert not block.size or block_info[0]["array-location"][1] == (3, 4)
        return block

    lazy = dask_array.map_blocks(
        one_lead_only, dask_array.from_array(fc["t2m"].values, chunks=(1, 1, -1, -1)), dtype="f4", meta=np.empty(0)
    )
    plot(fc.assign(t2m=(fc["t2m"].dims, lazy)), "t2m", 24)


def test_a_map_of_nothing_is_drawn(fc):
    colors = plot(fc * np.nan).collections[0].get_array()
    assert np.ma.masked_invalid(colors).mask.all()


def test_errors_list_what_there_is(fc):
    with pytest.raises(SchemaError, match=r"no map of 'rain'.*\n.*has t2m, u10, v10, q2m, sp, tcc, ssrd, wind"):
        plot(fc, "rain")
    with pytest.raises(TimeError, match=r"asked for \[7\]; this forecast has 6, 12, 18, 24 hours"):
        plot(fc, "t2m", [6, 7])
    with pytest.raises(SchemaError, match="found dims time=4"):
        plot(xr.Dataset({"t2m": ("time", np.zeros(4))}))


def test_members_that_are_not_there(fc):
    with pytest.raises(SchemaError, match=r"no member 1.*\n.*this forecast has no members"):
        plot(fc, member=1)
    with pytest.raises(SchemaError, match=r"no member 3.*\n.*this forecast has members 0..2"):
        plot(forecast(3), member=3)


def test_overview_is_a_picture(fc):
    target = io.BytesIO()
    plot_overview(fc, target)
    assert target.getvalue().startswith(b"\x89PNG")
    with pytest.raises(SchemaError, match="it lacks v10, tcc"):
        plot_overview(fc.drop_vars(["v10", "tcc"]), target)


def test_overview_averages_over_land(fc):
    axes = plot_overview(fc, io.BytesIO()).axes
    cycle = next(ax for ax in axes if ax.get_title() == "Diurnal cycle, mean over land")
    np.testing.assert_allclose(cycle.lines[0].get_xdata(), [6, 12, 18, 24])
    # the eastern five of nine columns: (5 + 6.25 + 7.5 + 8.75 + 10) / 5, and 1 K more every 6 h
    np.testing.assert_allclose(cycle.lines[0].get_ydata(), [7.5, 8.5, 9.5, 10.5], atol=1e-4)


def test_overview_shows_the_warmest_hour(fc):
    titles = [ax.get_title() for ax in plot_overview(fc, io.BytesIO()).axes]
    assert "2 m temperature\n2001-08-11 00:00 UTC (+24 h)" in titles


@pytest.mark.parametrize(("least", "bottom"), [(20.0, 0.0), (400.0, 400.0)])
def test_scale_starts_at_zero_unless_all_of_the_map_is_far_above(fc, least, bottom):
    shape = fc["ssrd"].shape
    values = np.broadcast_to(np.linspace(least, 500.0, shape[-2] * shape[-1]).reshape(shape[-2:]), shape)
    fc["ssrd"] = fc["ssrd"].copy(data=values)
    assert colorbar(plot(fc, "ssrd")).vmin == pytest.approx(bottom, abs=30.0)


@pytest.mark.parametrize(("speed", "words"), [(1.7, "1 m s"), (30.0, "20 m s")])
def test_the_arrow_of_the_legend_fits_the_wind(fc, speed, words):
    fc["u10"], fc["v10"] = fc["u10"] * 0 + speed, fc["v10"] * 0
    assert [key.text.get_text() for key in plot(fc, "wind").findobj(QuiverKey)] == [f"{words}$^{{-1}}$"]
