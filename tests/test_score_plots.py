import numpy as np
import pytest
import xarray as xr

import xscalemixer as xsm
from xscalemixer.errors import InputError, SchemaError, TimeError
from xscalemixer.verification import power_spectrum, quantiles, rank_histogram, reliability

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
LEADS = np.arange(6, 49, 6)
MODELS = ["ours", "rival", "persistence"]
RMSE = np.array([1.0, 2.1, 2.0])[:, None] * (1 + LEADS / 48)
SURE = np.array([LEADS > 0, LEADS > 30, LEADS < 0])  # where the interval of the difference excludes zero
UNITS = {"t2m": "K", "q2m": "kg kg-1", "sp": "Pa", "tcc": "1"}
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    matplotlib.pyplot.close("all")


def scores(*names, **changes):
    """Scores of three models against persistence; all variables have the same numbers, in canonical units."""
    difference = RMSE - RMSE[2]
    half = np.where(SURE, 0.5, 2) * np.abs(difference)
    metrics = {
        "rmse": RMSE,
        "bias": RMSE - 2,
        "spread": RMSE / 2,
        "correlation": RMSE / 10,
        "rmse_skill": 1 - RMSE / RMSE[2],
        "rmse_difference": difference,
        "rmse_difference_low": difference - half,
        "rmse_difference_high": difference + half,
        "count": np.full(RMSE.shape, 20.0),
    } | changes
    unitless = [name in ("correlation", "rmse_skill", "count") for name in metrics]
    coords = {"metric": list(metrics), "dimensionless": ("metric", unitless), "lead_time": LEADS, "model": MODELS}
    values = np.stack(list(metrics.values())).swapaxes(1, 2)
    dims = ("metric", "lead_time", "model")
    data = {name: (dims, values, {"units": UNITS[name]}) for name in names or ("t2m",)}
    return xr.Dataset(data, coords, {"title": "scores", "region": "all"})


def marks(ax):
    return sum(len(line.get_xdata()) for line in ax.lines if line.get_gid() == "significant")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# curves


def test_a_line_for_each_model_in_units_of_forecasters():
    ax = scores().scalemixer.plot("t2m")
    assert [line.get_color() for line in ax.lines[:1]] == [BLUE] and ax.get_ylabel() == "RMSE [K]"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), RMSE[0])
    assert ax.get_title() == "2 m temperature" and ax.get_xlabel() == "lead time [h]" and ax.get_ylim()[0] == 0
    assert ax.figure.get_suptitle() == "RMSE, n = 20 fields"
    assert legend(ax.figure) == [*MODELS, "differs from persistence (95 %)"]


@pytest.mark.parametrize(
    ("name", "units", "scale"), [("q2m", "g kg$^{-1}$", 1000), ("sp", "hPa", 0.01), ("tcc", "%", 100), ("t2m", "K", 1)]
)
def test_errors_have_the_units_of_differences(name, units, scale):
    ax = xsm.plot(scores(name), name, "bias")
    assert ax.get_ylabel() == f"bias [{units}]"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), (RMSE[0] - 2) * scale)


def test_units_of_squares_ratios_and_skills():
    sc = scores(mse=RMSE**2)
    assert xsm.plot(sc, "t2m", "mse").get_ylabel() == "MSE [K$^2$]"
    assert xsm.plot(sc, "t2m", "correlation").get_ylabel() == "correlation [1]"
    ax = xsm.plot(sc, "t2m", "rmse_skill")
    assert ax.get_ylabel() == "RMSE skill [%]" and ax.figure.get_suptitle().startswith("RMSE skill against persistence")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 50)


def test_marks_stand_where_the_interval_excludes_zero():
    assert marks(scores().scalemixer.plot("t2m")) == SURE.sum() == 8 + 3
    assert marks(scores().scalemixer.plot("t2m", "rmse_skill")) == SURE.sum()
    assert marks(scores().scalemixer.plot("t2m", "bias")) == 0
    plain = scores().drop_sel(metric=["rmse_difference_low", "rmse_difference_high"])
    assert marks(plain.scalemixer.plot("t2m")) == 0


def test_a_difference_shows_its_interval_and_not_the_reference():
    ax = scores().scalemixer.plot("t2m", "rmse_difference")
    assert legend(ax.figure) == ["ours", "rival", "95 % interval"] and len(ax.collections) == 2
    assert ax.get_ylabel() == "RMSE difference [K]" and ax.figure.get_suptitle().startswith("RMSE minus that of persistence")
    low = ax.collections[0].get_paths()[0].vertices[:, 1].min()
    assert low == pytest.approx((1.5 * (RMSE[0] - RMSE[2])).min())


def test_two_metrics_share_a_panel():
    ax = scores().scalemixer.plot("t2m", ["rmse", "spread"])
    curves = [line for line in ax.lines if line.get_gid() is None]
    assert [(line.get_color(), line.get_linestyle()) for line in curves] == [
        (color, dashes) for dashes in ("-", "--") for color in (BLUE, RED, GREEN)
    ]
    assert legend(ax.figure)[3:5] == ["RMSE", "spread"] and ax.get_ylabel() == "score [K]"
    with pytest.raises(SchemaError, match="t2m: rmse in K, correlation in 1; draw them one by one"):
        scores().scalemixer.plot("t2m", ["rmse", "correlation"])


def test_a_panel_for_each_variable_and_each_level_with_values():
    sc = scores("t2m", "sp")
    upper = scores()["t2m"].expand_dims(level=[500.0, 850.0, 1000.0]).assign_attrs(units="K")
    axes = sc.assign(t=upper.where(upper["level"] < 900)).scalemixer.plot()
    assert [ax.get_title() for ax in axes] == [
        "2 m temperature",
        "surface pressure",
        "500 hPa temperature",
        "850 hPa temperature",
    ]
    assert len(axes[0].figure.legends) == 1


def test_scores_of_one_model_have_no_legend():
    sc = scores().isel(model=0, drop=True).sel(metric=["rmse", "count"])
    ax = sc.scalemixer.plot("t2m")
    assert len(ax.lines) == 1 and not ax.figure.legends and sc.scalemixer.plot().shape == (1,)


def test_the_users_ax():
    figure, ax = matplotlib.pyplot.subplots()
    assert xsm.plot(scores(), ax=ax) is ax and not figure.legends and not figure.get_suptitle()
    assert [text.get_text() for text in ax.get_legend().get_texts()][:3] == MODELS
    with pytest.raises(InputError, match=r"2 panels do not fit one ax(?s:.)*choose one variable"):
        xsm.plot(scores("t2m", "sp"), ax=ax)


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(SchemaError, match="asked for rain; this dataset has t2m"):
        scores().scalemixer.plot("rain")
    with pytest.raises(SchemaError, match="asked for crps; these scores hold rmse, bias"):
        scores().scalemixer.plot("t2m", "crps")
    starts = scores().expand_dims(reference_time=3)
    with pytest.raises(SchemaError, match="t2m has dims reference_time, metric.*needed lead_time, metric and at most model"):
        starts.scalemixer.plot()
    bare = starts.isel(lead_time=0, drop=True)
    with pytest.raises(SchemaError, match=r'Type xsm.score\(..., by=\["variable", "lead_time"\]\)'):
        bare.scalemixer.plot()
    with pytest.raises(InputError, match="kind='map'; needed one of maps, curves, scorecard"):
        scores().scalemixer.plot(kind="map")
    with pytest.raises(SchemaError, match="a DataArray cannot be used here"):
        xsm.plot(scores()["t2m"])


def test_arguments_of_another_picture(pair):
    with pytest.raises(InputError, match=r"argument 'metric'; kind='maps' takes variable, lead_time.*metric= belongs to scores"):
        pair[0].scalemixer.plot(metric="rmse")
    with pytest.raises(InputError, match="'skill'; kind='curves' takes variables, metric, ax"):
        scores().scalemixer.plot(skill=1)


def test_reports_of_stations_are_not_called_fields(pair):
    fc, truth = pair
    at = xsm.at_stations(truth, xr.Dataset(coords={"station": list("abc"), "latitude": ("station", [58.0, 55, 50]),
         "longitude": ("station", [12.0, 15, 20]), "altitude": ("station", [0.0, 0, 0], {"units": "m"})}))  # fmt: skip
    sc = xsm.score(fc.isel(reference_time=[0]), at)
    assert sc.scalemixer.plot("t2m").figure.get_suptitle() == "RMSE, n = 3 reports"


# scorecard


def test_scorecard_is_blue_where_better_and_has_dots_where_sure():
    axes = scores("t2m", "sp").scalemixer.plot(kind="scorecard")
    assert [ax.get_title() for ax in axes] == ["ours", "rival"]
    for ax, sure, skill in zip(axes, SURE, (50, -5), strict=False):
        mesh, dots = ax.collections
        np.testing.assert_allclose(mesh.get_array(), skill)
        assert len(dots.get_offsets()) == 2 * sure.sum()
    better, worse = (axes[0].collections[0].to_rgba(value) for value in (30, -30))
    assert better[2] > better[0] and worse[0] > worse[2]
    boundaries = axes[0].collections[0].norm.boundaries
    np.testing.assert_array_equal(boundaries, -boundaries[::-1])


def test_scorecard_says_what_against_what():
    axes = scores("t2m", "sp").scalemixer.plot(kind="scorecard")
    figure = axes[0].figure
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["2 m temperature", "surface pressure"]
    assert figure.get_suptitle().startswith("RMSE against persistence, n = 20 fields\nblue is better; dots: the 95 % interval")
    assert figure.axes[-1].get_ylabel() == "RMSE skill against persistence [%]"
    assert [label.get_text() for label in axes[1].get_xticklabels()] == [str(lead) for lead in LEADS]


def test_48_leads_have_few_ticks():
    sc = scores().interp(lead_time=np.arange(1, 49), kwargs={"fill_value": "extrapolate"})
    ax = sc.assign_coords(dimensionless=scores()["dimensionless"]).scalemixer.plot(kind="scorecard")[-1]
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(lead) for lead in range(3, 49, 3)]
    assert ax.collections[0].get_array().shape == (1, 48)


def test_scorecard_needs_a_reference():
    with pytest.raises(SchemaError, match=r'these scores hold no mae_skill. Type xsm.score\(.*skill_against="persistence"'):
        xsm.plot(scores(), metric="mae", kind="scorecard")


# maps of scores


def by_place(dims, coords, shape):
    """A bias of -1 K in the west and 3 K in the east, an rmse of 2 K; 6 and 12 h."""
    east = np.linspace(-1, 3, shape[-1]) * np.ones(shape)
    values = np.stack([east, np.full(shape, 2.0), np.full(shape, 20.0)])[:, None] * np.ones((3, 2, *shape))
    axes = {"metric": ["bias", "rmse", "count"], "dimensionless": ("metric", [False, False, True]), "lead_time": [6, 12]}
    return xr.Dataset({"t2m": (("metric", "lead_time", *dims), values, {"units": "K"})}, axes | coords)


LAT, LON = np.linspace(65, 55, 6), np.linspace(0, 16, 9)
MESH = np.meshgrid(LAT, LON, indexing="ij")
PLACES = {
    "grid": by_place(("latitude", "longitude"), {"latitude": LAT, "longitude": LON}, (6, 9)),
    "curvilinear": by_place(("y", "x"), {"latitude": (("y", "x"), MESH[0]), "longitude": (("y", "x"), MESH[1])}, (6, 9)),
    "stations": by_place(
        ("station",),
        {"station": list("abcdefghi"), "latitude": ("station", LAT[[0, 5, 2] * 3]), "longitude": ("station", LON)},
        (9,),
    ),
}


@pytest.mark.parametrize("sc", PLACES.values(), ids=PLACES)
def test_maps_of_scores(sc):
    (ax,) = sc.scalemixer.plot("t2m", "bias")
    colors = ax.collections[0]
    assert ax.get_title() == "+12 h" and ax.get_aspect() == pytest.approx(2)
    noun = "reports" if "station" in sc.dims else "fields"
    assert ax.figure.get_suptitle() == f"2 m temperature, bias, n = 20 {noun}" and colors.colorbar.ax.get_ylabel() == "bias [K]"
    np.testing.assert_allclose(colors.get_array().ravel()[:9], np.linspace(-1, 3, 9))
    assert colors.norm.vmin == -colors.norm.vmax
    cold, warm = colors.to_rgba(-1), colors.to_rgba(3)
    assert cold[2] > cold[0] and warm[0] > warm[2]


def test_maps_of_skill_have_the_levels_of_the_scorecard():
    sc = PLACES["grid"].isel(metric=[1, 1]).assign_coords(metric=["rmse", "rmse_skill"])
    sc["t2m"][1, :, 0, 0] = -1e3  # nearly nothing to compare with, in one cell
    (ax,) = sc.scalemixer.plot("t2m", "rmse_skill")
    card = scores().scalemixer.plot(kind="scorecard")[0].collections[0].norm
    np.testing.assert_array_equal(ax.collections[0].norm.boundaries, card.boundaries)
    assert sc.scalemixer.plot("t2m", "rmse_skill", limits=(-80, 80))[0].collections[0].norm.boundaries[-1] == 80


def test_stations_without_a_score_have_no_dot():
    sc = PLACES["stations"].copy(deep=True)
    sc["t2m"][:, :, 3] = np.nan
    assert len(sc.scalemixer.plot("t2m", "bias")[0].collections[0].get_offsets()) == 8


def test_errors_begin_at_zero_and_panels_share_a_scale():
    axes = PLACES["grid"].scalemixer.plot("t2m", lead_time=[6, 12], limits=(0, 4))
    assert [ax.get_title() for ax in axes] == ["+6 h", "+12 h"] and axes[0].collections[0].norm is axes[1].collections[0].norm
    assert axes[0].collections[0].norm.vmin == 0


def test_a_map_of_all_leads_together_has_no_lead_in_its_title():
    (ax,) = PLACES["grid"].isel(lead_time=0, drop=True).scalemixer.plot("t2m")
    assert ax.get_title() == "" and ax.figure.get_suptitle() == "2 m temperature, RMSE, n = 20 fields"


def test_coast_of_another_dataset_in_any_order_of_its_own():
    lsm = xr.DataArray(np.tile([0.0] * 4 + [1.0] * 5, (7, 1)), {"lat": np.linspace(50, 70, 7), "lon": np.linspace(0, 16, 9)})
    (ax,) = xsm.plot(PLACES["grid"], "t2m", terrain=xr.Dataset({"lsm": lsm.assign_attrs(units="1")}))
    coast = next(c for c in ax.collections if np.array_equal(getattr(c, "levels", []), [0.5]))
    assert coast.get_paths()[0].vertices[:, 0] == pytest.approx(7)
    assert ax.get_ylim()[0] > 50 and ax.get_ylim()[1] < 70, "the terrain does not widen the map"


def test_maps_that_are_not_there():
    with pytest.raises(TimeError, match=r"asked for \[24\]; this forecast has 6, 12 hours"):
        PLACES["grid"].scalemixer.plot("t2m", lead_time=24)
    with pytest.raises(SchemaError, match="26 maps; needed at most 12. Select with lead_time="):
        PLACES["grid"].expand_dims(model=list("abcdefghijklm")).scalemixer.plot("t2m", lead_time=[6, 12])
    with pytest.raises(SchemaError, match=r'no map of scores(?s:.)*by=\["place"\]'):
        xsm.plot(scores(), kind="score_maps")


# diagnostics


STARTS = np.arange("2001-08-10", "2001-08-14", dtype="M8[D]").astype("M8[ns]")
GRID = {"latitude": np.linspace(60, 47.5, 6), "longitude": np.linspace(10, 27.5, 8)}


@pytest.fixture(scope="module")
def pair():
    """Five members and a truth, all drawn from one distribution around 7 degC."""
    draws = 280 + np.random.default_rng(0).normal(size=(6, 4, 2, 6, 8)).astype("f4")
    dims, attrs = ("reference_time", "lead_time", "latitude", "longitude"), {"units": "K", "standard_name": "air_temperature"}
    coords = {"reference_time": STARTS, "lead_time": ("lead_time", [6, 12], {"units": "hours"}), **GRID}
    fc = xr.Dataset({"t2m": (("member", *dims), draws[:5], attrs)}, coords)
    times = (STARTS[:, None] + np.array([6, 12], "m8[h]")).ravel()
    fields = draws[5].reshape(8, 6, 8)
    return fc, xr.Dataset({"t2m": (("time", "latitude", "longitude"), fields, attrs)}, {"time": times, **GRID})


def test_reliability_diagram(pair):
    table = reliability(*pair, "t2m", [280.15, 281.15])
    top, bottom = table.scalemixer.plot()
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    assert labels == ["perfectly reliable", "≥ 7 °C", "≥ 8 °C", "observed on average"]
    np.testing.assert_array_equal(top.lines[0].get_xydata(), [[0, 0], [1, 1]])
    assert len(bottom.patches) == 2 * 6
    np.testing.assert_allclose([bar.get_height() for bar in bottom.patches[:6]], table["count"].sum("lead_time")[0])
    happened = float((pair[1]["t2m"] >= 280.15).weighted(np.cos(np.deg2rad(pair[1]["latitude"]))).mean())
    assert top.lines[2].get_ydata()[0] == pytest.approx(happened, rel=1e-3)
    assert top.figure.get_suptitle() == "Reliability of 2 m temperature, lead time 6, 12 h\n4 starts, 48 cells"


def test_reliability_of_some_leads(pair):
    table = reliability(*pair, "t2m", 280.0)
    top, _ = table.scalemixer.plot(12)
    np.testing.assert_allclose(top.lines[1].get_ydata(), table["observed_frequency"].isel(threshold=0, lead_time=1))
    with pytest.raises(TimeError, match=r"asked for \[7\]"):
        table.scalemixer.plot(7)
    with pytest.raises(SchemaError, match=r"found \[500, 850\] hPa. Select with .sel\(level=...\)"):
        table.expand_dims(level=[500, 850]).scalemixer.plot()


def test_ranks_and_the_flat_line(pair):
    ranks = rank_histogram(*pair)
    ax = ranks.scalemixer.plot("t2m")
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], ranks["t2m"].mean("lead_time"))
    assert ax.lines[0].get_ydata()[0] == pytest.approx(1 / 6) and ax.get_xlabel() == "rank of the truth among 5 members"


def test_quantiles_against_quantiles(pair):
    ax = quantiles(*pair).scalemixer.plot("t2m")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("truth [°C]", "forecast [°C]") and ax.get_xlim() == ax.get_ylim()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["+6 h", "+12 h"]
    assert [note.get_text() for note in ax.texts] == ["1 %", "median", "99 %"]
    assert 4 < ax.lines[1].get_xdata().min() < ax.lines[1].get_xdata().max() < 10
    assert ax.figure.get_suptitle() == "Quantiles from 0.1 % to 99.9 %\n4 starts, 48 cells"


def test_spectra_of_several_datasets(pair):
    fc, truth = (power_spectrum(ds) for ds in pair)
    ax = xsm.plot({"forecast": fc, "truth": truth}, "t2m", [6, 12])
    assert [line.get_label() for line in ax.lines] == ["forecast +6 h", "forecast +12 h", "truth"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log") and ax.get_ylabel() == "variance in each ring [K$^2$]"
    complete = truth["t2m"].isel(wavenumber=truth["complete"].values)
    np.testing.assert_allclose(ax.lines[2].get_ydata(), complete.mean("time"))
    ax.figure.draw_without_rendering()
    (top,) = ax.child_axes
    assert top.get_xlabel() == "wavelength [km]"
    np.testing.assert_allclose(sorted(top.get_xlim()), 1 / np.array(ax.get_xlim())[::-1], rtol=1e-6)
    assert ax.figure.get_suptitle() == "Variance by scale, mean of 8 to 20 fields"


def test_one_spectrum_has_no_legend(pair):
    ax = power_spectrum(pair[1]).scalemixer.plot("t2m")
    assert ax.get_legend() is None and len(ax.lines) == 1 and ax.figure.get_suptitle() == "Variance by scale, mean of 8 fields"


# real scores


def test_scores_as_they_come(pair):
    fc, truth = pair
    still = truth.sel(time=STARTS + np.timedelta64(6, "h")).rename(time="reference_time").assign_coords(reference_time=STARTS)
    still = still.expand_dims(lead_time=[6, 12], axis=1).assign_coords(lead_time=("lead_time", [6, 12], {"units": "hours"}))
    sc = xsm.score({"ours": fc.mean("member", keep_attrs=True), "still": still}, truth, skill_against="still", draws=50)
    ax = sc.scalemixer.plot("t2m")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), sc["t2m"].sel(metric="rmse", model="ours"))
    (card,) = sc.isel(lead_time=[1]).scalemixer.plot(kind="scorecard")
    assert card.get_title() == "ours" and card.collections[0].get_array().shape == (1, 1)
