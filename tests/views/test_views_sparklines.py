"""Bars worked out by hand."""

from fastcluster_lm.views import sparkline, sparkline_rows


def test_bars_have_eight_heights_from_zero_to_one():
    assert sparkline([0.0, 0.124, 0.125, 0.5, 0.875, 0.99, 1.0]) == "▁▁▂▅███"
    assert sparkline([-0.3, 1.2, None, 0.0]) == "▁█ ▁"
    assert sparkline([]) == ""


def test_more_values_than_characters_leave_the_last_of_each_share():
    assert sparkline([0, 0, 0, 1, 0, 0, 0, 1], width=2) == "██"
    assert len(sparkline([0.5] * 1000, width=24)) == 24
    assert sparkline([0.0] * 999 + [1.0], width=24)[-1] == "█"


def test_each_place_has_its_row():
    place = {"split": "val", "space": "hidden", "group": "all", "labels": "task"}
    rows = [{**place, "layer": layer, "step": step, "ari": layer * step / 2, "null_ari": 0.1, "knn_share": None}
            for step in (0, 1, 2) for layer in (0, 1)]  # fmt: skip
    one, other = sparkline_rows(rows)
    assert (one["layer"], one["ari_steps"], one["ari"], one["null_ari"]) == (0, "▁▁▁", 0.0, 0.1)
    assert (other["layer"], other["ari_steps"], other["ari"], other["probes"]) == (1, "▁▅█", 1.0, 3)
    assert other["knn_share_steps"] == "   " and other["knn_share"] is None


def test_each_token_has_its_rows_and_is_named_only_beside_others():
    place = {"split": "val", "space": "hidden", "group": "all", "labels": "task", "layer": 0}
    rows = [{**place, "position": name, "step": step, "ari": ari} for step in (0, 1)
            for name, ari in (("instruction", 0.0), ("input", 1.0))]  # fmt: skip
    first, second = sparkline_rows(rows)
    assert (first["position"], first["ari_steps"]) == ("instruction", "▁▁")
    assert (second["position"], second["ari_steps"]) == ("input", "██")
    assert "position" not in sparkline_rows(rows[:1])[0]
