"""Reading a table on beside its writer: whole lines only, each once, and all anew once the file is another one."""

import json
import os

import pytest

from fastcluster_lm.store import LineTail, RunFolder
from fastcluster_lm.store.files import replace_file
from fastcluster_lm.store.lines import append_lines, split_after
from tests.store.minimal import minimal


def line(step: int) -> bytes:
    return json.dumps({"step": step}).encode() + b"\n"


def steps(found: tuple[list[dict], bool]) -> tuple[list[int], bool]:
    return [row["step"] for row in found[0]], found[1]


def test_rows_come_once_in_the_order_written(tmp_path):
    tail = LineTail(tmp_path / "rows.jsonl")
    assert tail.read() == ([], False)
    append_lines(tmp_path / "rows.jsonl", [{"step": 0}, {"step": 1}])
    assert steps(tail.read()) == ([0, 1], False)
    assert steps(tail.read()) == ([], False)
    append_lines(tmp_path / "rows.jsonl", [{"step": 2}])
    assert steps(tail.read()) == ([2], False)


def test_a_line_whose_end_is_missing_is_not_given_however_whole_it_looks(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(0) + line(1)[:-1])
    tail = LineTail(path)
    assert steps(tail.read()) == ([0], False)
    # it was a piece of another line
    path.write_bytes(line(0) + line(1)[:-2] + b"5}\n")
    assert steps(tail.read()) == ([15], False)


def test_a_line_that_is_written_in_pieces_comes_when_it_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = line(0) + line(1)
    tail = LineTail(path)
    given: list[int] = []
    with open(path, "wb", buffering=0) as file:
        for byte in whole:
            file.write(bytes([byte]))
            given += steps(tail.read())[0]
    assert given == [0, 1]


@pytest.mark.parametrize("torn", [b'{"step":1', b'{"step":1,"x\n', b"\x00\x00\x00\n", b'{"st\xff'])
def test_a_torn_last_line_is_passed_over_until_the_next_writer_cuts_it_off(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(0) + torn)
    tail = LineTail(path)
    assert steps(tail.read()) == ([0], False)
    with pytest.warns(match="torn"):
        append_lines(path, [{"step": 2}])
    assert steps(tail.read()) == ([2], False)


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_lines(path, [{"step": 0}, {"step": 1}, {"step": 2}])
    tail = LineTail(path)
    tail.read()
    replace_file(path, split_after(path, 1).kept)
    append_lines(path, [{"step": 2}, {"step": 3}])
    assert steps(tail.read()) == ([0, 1, 2, 3], True)
    os.truncate(path, 5)
    assert tail.read() == ([], True)
    path.unlink()
    assert tail.read() == ([], True)
    assert tail.read() == ([], False)


def test_columns_that_a_row_lacks_are_none(tmp_path):
    run = RunFolder.create(tmp_path / "run", minimal(), {})
    (run.path / "scores.jsonl").write_bytes(b'{"step": 0, "layer": 1, "ari": 0.5}\n')
    (run.path / "steps.jsonl").write_bytes(b'{"step": 0}\n')
    (scores, _), (rows, _) = run.follow("scores").read(), run.follow("steps").read()
    assert scores == run.scores() and scores[0]["group"] is None
    assert rows == run.steps() and rows[0]["loss"] is None
