"""Task files load as written, and every mistake in one is refused with file and key."""

import tomllib
from pathlib import Path

import pytest
import tomli_w

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks.files import load_taskset, taskset_from_dict
from fastcluster_lm.tasks.taskset import Task, TaskSet

GOOD = """
inputs = ["A", "B"]
outputs = ["x", "yes"]
lengths = [3]

[[tasks]]
name = "one"
expressions = ["a[bc]{2}", "b[bc]{2}"]
table = {A = "x", B = "yes"}

[[tasks]]
name = "two"
expressions = ["c[bc]{2}"]
table = {B = "x", A = "yes"}
"""


def load(folder: Path, text: str) -> TaskSet:
    path = folder / "set.toml"
    path.write_text(text, encoding="utf-8")
    return load_taskset(path)


def test_file_loads_as_written(tmp_path: Path) -> None:
    expected = TaskSet(
        inputs=("A", "B"),
        outputs=("x", "yes"),
        lengths=(3,),
        tasks=(Task("one", ("a[bc]{2}", "b[bc]{2}"), (0, 1)), Task("two", ("c[bc]{2}",), (1, 0))),
    )
    assert load(tmp_path, GOOD) == expected
    assert load_taskset(str(tmp_path / "set.toml"), needed_strings=4) == expected
    with pytest.raises(TaskError, match=r"set\.toml: tasks\[0\]\.expressions\[0\]: .*has 4 strings"):
        load_taskset(tmp_path / "set.toml", needed_strings=5)


def test_toml_dict_reads_back_as_the_same_taskset(tmp_path: Path) -> None:
    taskset = load(tmp_path, GOOD.replace('"A"', '"é \\" ."').replace("A =", '"é \\" ." ='))
    assert taskset.inputs[0] == 'é " .'
    assert taskset_from_dict(tomllib.loads(tomli_w.dumps(taskset.to_toml_dict()))) == taskset


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lengths =", "length =", "length: unknown key, .*did you mean 'lengths'"),
        ("lengths = [3]", "", "lengths: missing"),
        ("lengths = [3]", "lengths = 3", "lengths: expected a list, found 3"),
        ("lengths = [3]", "lengths = [3.0]", r"lengths\[0\]: expected a whole number, found 3\.0"),
        ("lengths = [3]", "lengths = [true]", r"lengths\[0\]: expected a whole number, found True"),
        ("lengths = [3]", "lengths = [0]", r"lengths\[0\]: expected a length of 1 or more"),
        ('inputs = ["A", "B"]', 'inputs = "AB"', "inputs: expected a list, found 'AB'"),
        ('inputs = ["A", "B"]', 'inputs = ["A", 2]', r"inputs\[1\]: expected a string, found 2"),
        ('inputs = ["A", "B"]', 'inputs = ["A", "B", "C"]', r"tasks\[0\]\.table: .*none for 'C'"),
        ('inputs = ["A", "B"]', 'inputs = ["A"]', r"tasks\[0\]\.table: 'B' is not one of inputs"),
        ('name = "two"', 'nme = "two"', r"tasks\[1\]\.nme: unknown key.*did you mean 'name'"),
        ('name = "two"', "", r"tasks\[1\]\.name: missing"),
        ('name = "two"', "name = 2", r"tasks\[1\]\.name: expected a string, found 2"),
        ('name = "two"', 'name = "one"', r"tasks\[1\]\.name: 'one' is the name of tasks\[0\]"),
        ('"c[bc]{2}"', '"c[bc"', r"tasks\[1\]\.expressions\[0\]: 'c\[bc'"),
        ('"c[bc]{2}"', '"[bc]{3}"', r"tasks\[0\]\.expressions\[1\] and tasks\[1\]\.expressions\[0\]: .*'bbb'"),
        ('["c[bc]{2}"]', '"c[bc]{2}"', r"tasks\[1\]\.expressions: expected a list"),
        (', B = "yes"', "", r"tasks\[0\]\.table: .*none for 'B'"),
        ('B = "yes"', 'B = "yess"', r"tasks\[0\]\.table\.B: 'yess' is not one of outputs.*did you mean 'yes'"),
        ('B = "yes"', "B = 1", r"tasks\[0\]\.table\.B: expected a string, found 1"),
        ('{B = "x", A = "yes"}', '["x", "yes"]', r"tasks\[1\]\.table: expected a table, found \['x', 'yes'\]"),
        ("[[tasks]]", "[[task]]", "task: unknown key.*did you mean 'tasks'"),
        ('inputs = ["A", "B"]', "inputs = [", "expected TOML"),
        ('name = "one"', 'name = "one"\nname = "one"', "expected TOML"),
    ],
)
def test_mistake_is_refused_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(TaskError, match=rf"set\.toml: {message}"):
        load(tmp_path, GOOD.replace(old, new))


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    with pytest.raises(TaskError, match=r"sett\.toml: no such task file; did you mean 'set\.toml'"):
        load_taskset(tmp_path / "sett.toml")
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        load_taskset(tmp_path)
    (tmp_path / "set.toml").write_bytes(b'inputs = ["\xff"]')
    with pytest.raises(TaskError, match="found a broken byte at 11, which is no UTF-8"):
        load_taskset(tmp_path / "set.toml")
