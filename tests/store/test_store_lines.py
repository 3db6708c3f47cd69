"""JSON lines: a torn last line costs only itself, a damaged middle is an error, a failed append adds nothing."""

import errno
import os
import warnings

import pytest

from fastcluster_lm.errors import DataError, RunFolderError
from fastcluster_lm.store import lines
from fastcluster_lm.store.lines import SplitTable, TornLineWarning, append_lines, read_lines, split_after

ROWS = [{"step": step, "text": "ä\n☃", "x": step / 7} for step in range(4)]


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS[:1])
    append_lines(path, [])
    append_lines(path, ROWS[1:])
    assert read_lines(path) == ROWS
    assert path.read_bytes().count(b"\n") == 4
    assert read_lines(tmp_path / "absent.jsonl") == []


def test_a_row_that_has_no_place_in_json_adds_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS[:1])
    for value in (object(), {1, 2}, "\ud800"):
        with pytest.raises(DataError, match="a row of step 3 cannot be stored as JSON"):
            append_lines(path, [ROWS[1], {"step": 3, "x": value}])
    assert read_lines(path) == ROWS[:1]


def test_one_append_is_one_write_and_one_sync(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS[:1])
    calls = []
    for name in ("write", "fsync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    append_lines(path, ROWS[1:])
    assert calls == ["write", "fsync"]


def test_line_torn_at_every_byte_is_dropped_and_mended(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS)
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last + 1, len(data)):
        path.write_bytes(data[:end])
        with pytest.warns(TornLineWarning, match="rows.jsonl"):
            assert read_lines(path) == ROWS[:3]
        with pytest.warns(TornLineWarning):
            append_lines(path, [{"step": 9}])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_lines(path) == [*ROWS[:3], {"step": 9}]


@pytest.mark.parametrize("tail", [b"\0" * 70, b"\0" * 69 + b"\n", b'{"step": 4, "x"\n'])
def test_piece_lost_by_a_power_cut_at_the_end_is_dropped(tmp_path, tail):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS)
    with path.open("ab") as file:
        file.write(tail)
    with pytest.warns(TornLineWarning):
        assert read_lines(path) == ROWS
    with pytest.warns(TornLineWarning):
        append_lines(path, [{"step": 9}])
    assert read_lines(path) == [*ROWS, {"step": 9}]


def test_mending_finds_a_line_longer_than_one_piece(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(lines, "TAIL_BYTES", 16)
    append_lines(path, ROWS)
    size = path.stat().st_size
    append_lines(path, [{"step": 9, "text": "y" * 100}])
    with path.open("r+b") as file:
        file.truncate(size + 90)
    with pytest.warns(TornLineWarning):
        append_lines(path, [{"step": 10}])
    assert read_lines(path) == [*ROWS, {"step": 10}]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[1]",
        b"{}",
        b'{"step": true}',
        b'{"step": NaN}',
        b'{"step": 1, "x": 1e999}',
        b'{"step": 1, "step": 2}',
        b"\xff",
        b"[" * 100_000,
        b'{"step": ' + b"9" * 9000 + b"}",
    ],
    ids=range(11),
)
def test_damaged_middle_names_file_and_line(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(RunFolderError, match=r"rows.jsonl, line 2 is damaged"):
        read_lines(path)
    with pytest.raises(RunFolderError, match="line 2"):
        split_after(path, 0)
    assert path.read_bytes().endswith(b'{"step": 2}\n')


def test_splitting_keeps_the_bytes_of_every_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 0,  "x": 1.50}\n{"step":5}\n{"step": 3}\n')
    early, late = b'{"step": 0,  "x": 1.50}\n{"step": 3}\n', b'{"step":5}\n'
    assert split_after(path, 3) == SplitTable(early, late, b"", torn=False, last=3)
    assert split_after(path, -1) == SplitTable(b"", path.read_bytes(), b"", torn=False, last=None)
    assert split_after(tmp_path / "absent.jsonl", 0) == SplitTable(b"", b"", b"", torn=False, last=None)


def test_splitting_tells_a_line_that_was_cut_off_from_a_damaged_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    for rest, damaged in ((b'{"step": 1', b""), (b'{"step"; 1}\n', b'{"step"; 1}\n')):
        path.write_bytes(b'{"step": 0}\n' + rest)
        with pytest.warns(TornLineWarning):
            assert split_after(path, 5) == SplitTable(b'{"step": 0}\n', b"", damaged, torn=not damaged, last=0)


@pytest.mark.parametrize("step", [None, -1, True, 1.0, "1"])
def test_rows_without_a_step_are_refused(tmp_path, step):
    with pytest.raises(DataError, match="step="):
        append_lines(tmp_path / "rows.jsonl", [{"step": 1}, {"step": step}])
    assert not (tmp_path / "rows.jsonl").exists()


def test_full_disk_adds_no_row(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    append_lines(path, ROWS[:2])
    before = path.read_bytes()
    real = os.write
    calls = []

    def take_ten_bytes_then_fail(descriptor, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:10])

    monkeypatch.setattr(os, "write", take_ten_bytes_then_fail)
    with pytest.raises(RunFolderError, match="disk is full"):
        append_lines(path, ROWS[2:])
    assert len(calls) == 2
    assert path.read_bytes() == before
