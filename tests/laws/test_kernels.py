"""An op of the workshop gives a result wherever it is called, and has a reference; who computes it is its matter."""

import importlib
import inspect
import re
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import pytest

import fastcluster_lm.kernels as workshop

OPS = sorted(path.parent.name for path in Path(workshop.__path__[0]).glob("*/op.py"))
# None is their answer and asks nobody to compute it instead: some query has too few neighbours
ANSWERS = {"first_others"}


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_a_reference_and_never_gives_none_in_place_of_a_result(name):
    package = importlib.import_module(f"fastcluster_lm.kernels.{name}")
    assert Path(package.__file__).with_name("reference.py").exists()
    functions = [one for one in map(package.__dict__.get, package.__all__) if inspect.isfunction(one)]
    for function in functions:
        given = get_type_hints(function).get("return")
        assert function.__name__ in ANSWERS or NoneType not in get_args(given), function.__qualname__


def test_fused_names_the_engine_alone():
    found = [path for path in Path(workshop.__path__[0]).rglob("*.py") if re.search(r"\bfused\b", path.read_text())]
    assert found == []


def test_no_op_is_left_out():
    assert len(OPS) == 14
