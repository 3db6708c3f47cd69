"""Threads of torch and of kernels: a run has those it asks for, and its caller's are put back."""

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import Hooks, resume_run, start_run
from fastcluster_lm.engine.probing import probe_run
from fastcluster_lm.kernels import native
from tests.laws.conftest import SMALL


def counts():
    return torch.get_num_threads(), native.thread_count()


@pytest.fixture
def three_and_two():
    """Have kernels take three threads and torch two, whatever this process had."""
    with native.threads_kept():
        native.use_threads(3, 2)
        yield


def test_a_run_has_the_threads_it_asks_for_and_puts_its_callers_back(three_and_two, tmp_path):
    config = config_from_dict({**SMALL, "scores": {**SMALL["scores"], "threads": 4}})
    seen = []
    hooks = Hooks(on_step=lambda row, scores: seen.append(counts()), should_stop=lambda: len(seen) > 2)
    assert not start_run(config, tmp_path / "run", hooks).finished
    assert set(seen) == {(1, 4)} and counts() == (2, 3)
    more = Hooks(on_step=lambda row, scores: seen.append(counts()))
    assert resume_run(tmp_path / "run", more).finished
    assert set(seen) == {(1, 4)} and counts() == (2, 3)
    said = []
    probe_run(tmp_path / "run", say=lambda text: said.append(counts()))
    assert set(said) == {(1, 4)} and counts() == (2, 3)


def test_threads_are_put_back_after_an_error_too(three_and_two):
    with pytest.raises(ZeroDivisionError), native.threads_kept():
        native.use_threads(lambda: 7, 1)
        assert counts() == (1, 7)
        raise ZeroDivisionError
    assert counts() == (2, 3)


@pytest.mark.parametrize(("asked", "beside", "alone"), [(0, 2, 5), (3, 3, 3)])
def test_a_probes_process_takes_all_cores_while_training_waits(three_and_two, monkeypatch, asked, beside, alone):
    monkeypatch.setattr(native, "cpu_cores", lambda: 5)
    waits = [False]
    native.share_cores(lambda: waits[0], asked, 3)
    assert counts() == (3, beside)
    waits[0] = True
    assert counts() == (3, alone)
