"""The progress line, piped and on a terminal, under a clock of our own."""

import io

import pytest

from fastcluster_lm.views import Progress

BASE = {"space": "hidden", "group": "input_output", "labels": "task", "split": "val"}
SCORES = [
    BASE | {"step": 2, "layer": 0, "ari": 0.1, "knn_share": 0.9},
    BASE | {"step": 2, "layer": 3, "ari": 0.54321, "knn_share": None},
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def step(number, **values):
    return {
        "step": number,
        "loss": 1.0 / (number + 1),
        "step_ms": 30.0,
        "probe_ms": None,
        "probe_wait_ms": None,
    } | values


def test_piped_lines_say_all_that_is_known():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(1000, stream, clock=clock)
    progress.update(step(1))
    clock.now += 2
    progress.update(step(2, probe_ms=90.0, probe_wait_ms=20.0, val_accuracy=0.98765), SCORES)
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step    1/1000  loss 0.500",
        "step    2/1000  loss 0.333  accuracy 0.988  layer 3: ARI 0.54 KNN -  probe 25%  0:33:16 left",
    ]


def test_piped_lines_are_few():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(100, stream, clock=clock)
    for number in range(1, 101):
        clock.now += 0.1
        progress.update(step(number, val_accuracy=0.5 if number == 30 else None), SCORES if number == 70 else None)
    shown = [int(line.split("/")[0].split()[1]) for line in stream.getvalue().splitlines()]
    # every 5 s, which is 50 steps, from the last line on; the evaluation, the probe and the last step always
    assert shown == [1, 30, 70, 100]
    progress = Progress(200, stream, clock=clock)
    stream.truncate(0)
    for number in range(1, 121):
        clock.now += 0.1
        progress.update(step(number))
    assert stream.getvalue().count("step ") == 3


def test_time_left_counts_from_the_first_step_seen():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(700, stream, clock=clock)
    progress.update(step(500))
    clock.now += 50
    progress.update(step(600))
    assert stream.getvalue().endswith("0:00:50 left\n")


def test_notes_stand_on_their_own_and_are_not_markup():
    stream = io.StringIO()
    with Progress(10, stream, clock=Clock()) as progress:
        progress.note("task [bold]{3} " + "x" * 300)
    assert stream.getvalue() == "task [bold]{3} " + "x" * 300 + "\n"


def test_terminal_keeps_one_live_line_and_gives_the_cursor_back():
    stream, clock = Terminal(), Clock()
    progress = Progress(10, stream, clock=clock)
    try:
        progress.update(step(1))
        for _ in range(50):
            progress.update(step(2))
        assert stream.getvalue().count("step") == 1
        clock.now += 1
        progress.update(step(3), SCORES)
        progress.note("saved")
    finally:
        progress.close()
        progress.close()
    shown = stream.getvalue()
    assert "step  3/10" in shown and "layer 3: ARI 0.54" in shown and "saved" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_error_in_the_body_gives_the_terminal_back():
    stream = Terminal()
    with pytest.raises(KeyError), Progress(10, stream, clock=Clock()):
        raise KeyError
    assert "\x1b[?25h" in stream.getvalue()
