"""Rows that wait: order, probes that are not done, what a flush writes."""

from fastcluster_lm.store import RowQueue, RunFolder


def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"name": "x"}, {})


def test_a_step_whose_probe_runs_holds_back_those_after_it(tmp_path):
    place = folder(tmp_path)
    rows = RowQueue(place)
    rows.add_step({"step": 1}, probed=False)
    rows.add_step({"step": 2}, probed=True)
    rows.add_step({"step": 3}, probed=False)
    rows.add_step({"step": 4}, probed=True)
    rows.flush()
    assert [row["step"] for row in place.steps()] == [1] and place.scores() == []
    rows.add_probe(2, [{"step": 2, "layer": 0}, {"step": 2, "layer": 1}], 7.5)
    # nothing is written before it is asked for
    assert [row["step"] for row in place.steps()] == [1]
    rows.flush()
    assert [(row["step"], row["probe_ms"]) for row in place.steps()] == [(1, None), (2, 7.5), (3, None)]
    assert [(row["step"], row["layer"]) for row in place.scores()] == [(2, 0), (2, 1)]
    rows.add_probe(4, [], 1.0)
    rows.flush()
    rows.flush()
    assert [row["step"] for row in place.steps()] == [1, 2, 3, 4] and len(place.scores()) == 2


def test_a_row_may_be_filled_until_it_is_written(tmp_path):
    place = folder(tmp_path)
    rows, row = RowQueue(place), {"step": 0}
    rows.add_step(row, probed=False)
    row["probe_wait_ms"] = 3.0
    rows.flush()
    assert place.steps()[0]["probe_wait_ms"] == 3.0
