"""What goes into a page: 16-bit coordinates, blocks of scores, packed bytes; each against the numbers it came from."""

import gzip

import numpy as np
import pytest

from fastcluster_lm.errors import RunFolderError, UsageError
from fastcluster_lm.store import FIRST_VAL_ID
from fastcluster_lm.views.extras import require
from fastcluster_lm.views.report.frames import TOP, bounds_of, label_names, quantise, read_frames, thinned
from fastcluster_lm.views.report.history import read_history
from fastcluster_lm.views.report.look import MARKERS, PALETTE, SIGNS, layer_tints
from fastcluster_lm.views.report.packing import KEPT_BITS, pack, rounded
from fastcluster_lm.views.report.series import COLUMNS, score_blocks, training_curves
from fastcluster_lm.views.report.sources import RunSources
from fastcluster_lm.views.report.write import report_html
from tests.views.report.made_run import HOSTILE, ari_of, make_run


def test_the_ends_of_the_bounds_are_the_ends_of_sixteen_bits():
    bounds = np.array([[1.0], [2.0], [4.0]], np.float32)
    points = np.array([[[-3.0, 5.0, 1.0]], [[-2.0, 6.0, 2.0]]])
    found = quantise(points, bounds)
    assert found[:, :, :2].tolist() == [[[0, TOP]], [[0, TOP]]] and TOP == 2**16 - 1
    # the middle lies between two steps
    assert set(found[:, :, 2].ravel()) <= {TOP // 2, TOP // 2 + 1}


def test_a_coordinate_is_off_by_half_a_step_at_most():
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(2, 3, 500)) * scale for scale in (1, 30)]
    bounds = bounds_of(frames)
    for points in frames:
        unit = 2 * bounds[2].astype(float) / TOP
        back = bounds[:2, :, None] - bounds[2][None, :, None] + quantise(points, bounds) * unit[None, :, None]
        assert (abs(back - points) <= unit[None, :, None] * 0.501).all()
        # nothing is clipped, for the bounds hold every frame
        assert quantise(points, bounds).min() > 0 and quantise(points, bounds).max() < TOP


def test_points_that_all_lie_in_one_place_have_bounds():
    bounds = bounds_of([np.zeros((2, 1, 4), np.float32)])
    assert bounds[2] > 0 and quantise(np.zeros((2, 1, 4)), bounds).min() > 0


def unpack(packed: np.ndarray, dtype: str, shape: tuple[int, ...], moving: bool) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    planes = np.frombuffer(gzip.decompress(packed.tobytes()), np.uint8).reshape(size, -1)
    found = np.ascontiguousarray(planes.T).view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return np.cumsum(found, 0, dtype=dtype) if moving else found


@pytest.mark.parametrize(
    ("dtype", "moving"), [("uint16", True), ("uint16", False), ("float32", False), ("uint32", False)]
)
def test_packed_arrays_come_back_bit_for_bit(dtype, moving):
    array = (np.random.default_rng(1).random((5, 3, 7)) * 65535).astype(dtype)
    array.reshape(-1)[:2] = (65535, 0)
    assert (unpack(pack(array, moving=moving), dtype, array.shape, moving) == array).all()


def test_rounding_takes_a_share_of_a_score_that_is_named():
    values = np.concatenate([np.random.default_rng(2).normal(size=1000), [0.0, 1.0, -1.0, 1e-30, np.nan]]).astype("f4")
    found = rounded(values)
    assert np.isnan(found[-1]) and found[-5:-2].tolist() == [0.0, 1.0, -1.0]
    assert (abs(found[:-1] - values[:-1]) <= abs(values[:-1]) * 2.0 ** -(KEPT_BITS + 1)).all()
    assert len(pack(found[:-1])) < 0.8 * len(pack(values[:-1]))


def test_scores_stand_where_their_row_says(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (0, 50, 100):
        run.add(step)
    # a step probe scores less
    run.folder.append_scores([{"step": 110, "layer": 1, "split": "train", "space": "hidden", "group": "all",
                               "labels": "task", "tier": "step", "ari": 0.25, "position": "input"}])  # fmt: skip
    blocks = score_blocks(run.folder.scores(), 3)
    assert blocks.steps == [0, 50, 100, 110]
    assert blocks.values.shape == (4, 28 * len(COLUMNS), 3)
    row = blocks.series.index("input|val|hidden|input_output|task|ari")
    expected = [[ari_of(step, layer) for layer in range(3)] for step in (0, 50, 100)]
    np.testing.assert_allclose(blocks.values[:3, row], expected, rtol=1e-6)
    last = blocks.values[3, blocks.series.index("input|train|hidden|all|task|ari")]
    assert np.isnan(last[[0, 2]]).all() and last[1] == 0.25
    # ari_of is within 5 % of its last value at the last probe alone, and flat scores settle at once
    assert blocks.settled[row].tolist() == [100, 100, 100]
    assert blocks.settled[blocks.series.index("input|val|hidden|input_output|task|ami")].tolist() == [0, 0, 0]
    assert np.isnan(blocks.settled[blocks.series.index("input|val|hidden|input_output|task|null_ari")]).all()


def test_curves_are_thinned_but_keep_validations_probes_and_the_end():
    rows = [{"step": i, "loss": float(i), "val_accuracy": 0.5 if i == 777 else None} for i in range(5001)]
    found = training_curves(rows, most=100)
    assert len(found["step"]) < 110 and {0.0, 777.0, 5000.0} <= set(found["step"].tolist())
    assert (found["loss"] == found["step"]).all() and np.isfinite(found["val_accuracy"]).sum() == 1
    assert np.isnan(found["probe_ms"]).all()


def test_maps_of_one_probe_set_share_its_labels(tmp_path):
    run = make_run(tmp_path / "run")
    for step in (0, 50):
        run.add(step, warm=step > 0)
    arrays, _ = run.folder.read_map(50)
    ids = np.where(arrays["is_val"] == 1, FIRST_VAL_ID + 2 * 3, 2 * 7 + 1)
    run.folder.write_map(100, {**arrays, "ids": ids, "right": np.arange(48) % 2}, {"warm": "true"})
    frames = read_frames(read_history(run.folder), [0, 50, 100])
    assert frames.set_of == [0, 0, 1] and frames.warm == [[False], [True], [True]]
    assert sorted(frames.sets[0]) == ["distribution", "input", "output", "split", "task"]
    # three tasks of two distributions with six training instructions each come before those of validation
    assert frames.sets[1]["instruction"].tolist() == [7] * 24 + [36 + 3] * 24
    names = label_names(run.folder.config(), ["right", "split", "task", "kind"])
    assert names == {"right": ["wrong", "right"], "split": ["training", "validation"], "task": ["t0", "t1", "t2"]}


def test_of_several_tokens_each_has_its_series_and_its_points(tmp_path):
    run = make_run(tmp_path / "run", positions=("instruction", "input"))
    for step in (0, 50):
        run.add(step, warm=step > 0)
    history = read_history(run.folder, "input")
    assert (history.positions, history.position) == (["instruction", "input"], "input")
    source = RunSources(history, tabulate=lambda points, task: np.zeros((len(points), 3, 3), int))
    source.fill(packed=False)
    frames, models = read_frames(history, [0, 50]), source.models
    assert frames.points[0].shape == (2, 3, 2 * 48) and frames.warm == [[False, True], [True, True]]
    # the points of the second token lie behind those of the first, in one square with them
    assert (frames.points[1][:, :, 48:] == np.roll(frames.points[1][:, :, :48], 1, axis=2)).all()
    assert len(models.maps.data["tables"][0]) == 2 * 3 * 3 * 3
    blocks = score_blocks(history.score_rows, 3)
    found = {
        position: blocks.values[:, blocks.series.index(f"{position}|val|hidden|all|task|ari")]
        for position in run.positions
    }
    for at, position in enumerate(run.positions):
        expected = [[ari_of(step, layer + at) for layer in range(3)] for step in (0, 50)]
        np.testing.assert_allclose(found[position], expected, rtol=1e-6)
    with pytest.raises(UsageError, match=r"one of the run's tokens \(instruction, input\), got 'inputs'; did you mean"):
        read_history(run.folder, "inputs")


@pytest.mark.parametrize("damage", ["gone", "other shape", "no floats"])
def test_a_map_that_lacks_a_tokens_points_is_refused(tmp_path, damage):
    run = make_run(tmp_path / "run", positions=("instruction", "input"))
    run.add(0)
    arrays, notes = run.folder.read_map(0)
    wrong = {"gone": None, "other shape": arrays["points"][:, :-1], "no floats": arrays["points"].astype(int)}[damage]
    arrays.pop("points/input")
    run.folder.write_map(0, arrays | ({} if wrong is None else {"points/input": wrong}), notes)
    with pytest.raises(RunFolderError, match=r"the map of step 0 .* is damaged: .*points/input"):
        read_frames(read_history(run.folder), [0])


def test_rows_of_an_older_version_are_of_the_only_token(tmp_path):
    run = make_run(tmp_path / "run")
    run.folder.append_scores([{"step": 0, "layer": 1, "split": "val", "space": "hidden", "group": "all",
                               "labels": "task", "ari": 0.25}])  # fmt: skip
    assert [row["position"] for row in read_history(run.folder).score_rows] == ["input"]


def test_maps_beyond_what_a_page_holds_are_left_out_evenly_and_it_says_so(tmp_path, monkeypatch):
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    assert thinned(list(range(101)), 5) == [0, 25, 50, 75, 100]
    run = make_run(tmp_path / "run")
    for step in range(0, 90, 10):
        run.add(step)
    monkeypatch.setattr("fastcluster_lm.views.report.sources.MOST_COORDINATES", 3 * 48 * 2 * 5)
    source = RunSources(read_history(run.folder))
    page = report_html([source])
    assert list(source.models.frames.data["step"]) == [0, 20, 40, 60, 80]
    assert "5 of 9 maps are shown" in page


def test_a_page_of_a_large_run_stays_below_six_megabytes(tmp_path, monkeypatch):
    # no line is forced to disk: the writer of rows is tested elsewhere
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    run = make_run(tmp_path / "run", n_layers=7, n_points=1000, n_tasks=12)
    for step in range(0, 5000, 50):
        run.add(step, warm=step > 0)
    page = report_html([RunSources(read_history(run.folder))]).encode()
    # points drawn at random pack worst: real maps move little from one probe to the next
    assert 4e6 < len(page) < 6e6


def test_names_that_would_end_the_script_do_not(tmp_path):
    run = make_run(tmp_path / "<img src=x onerror='window.broken=1'>", name=HOSTILE)
    run.add(0)
    page = report_html([RunSources(read_history(run.folder), texts=[HOSTILE])])
    # Bokeh's own scripts hold an <img of theirs
    assert page.count("img src=x onerror") >= 5 and "<img src=x" not in page


def test_seventy_classes_differ_in_colour_or_mark():
    assert len(set(PALETTE)) == 7 and len(set(MARKERS)) == len(set(SIGNS)) == 10
    assert len(PALETTE) * len(MARKERS) >= 64


@pytest.mark.parametrize(("dark", "background"), [(False, 1.0), (True, 0.01)])
def test_every_layer_is_seen_on_its_background(dark, background):
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    tints = layer_tints(7, dark=dark)
    assert len(set(tints)) == 7
    # contrast as the web's accessibility guidelines define it; 1.9 is what the lightest line has on white
    ratios = [(max(one, background) + 0.05) / (min(one, background) + 0.05) for one in map(luminance, tints)]
    assert min(ratios) > 1.9


def test_a_package_that_is_missing_is_named_with_its_extra():
    require("numpy", extra="report", purpose="this")
    with pytest.raises(UsageError, match=r"fclm report: expected the package no_such_package.*\[report\]"):
        require("no_such_package", extra="report", purpose="fclm report")
