"""Task sets read from TOML, each error naming file and key; it writes no files and draws no tasks."""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from fastcluster_lm.errors import TaskError, nearest_name
from fastcluster_lm.tasks.taskset import Task, TaskSet

_TASKSET_KEYS = ("inputs", "outputs", "lengths", "tasks")
_TASK_KEYS = ("name", "expressions", "table")


def load_taskset(path: str | Path, *, needed_strings: int = 1) -> TaskSet:
    """Read and check a task set.

    Errors: TaskError naming the file, and the key where one is at fault
    """
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.glob("*.toml")]
        raise TaskError(f"{path}: no such task file{nearest_name(path.name, beside)}") from error
    except OSError as error:
        raise TaskError(f"{path}: the task file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: expected UTF-8 text, found a broken byte at {error.start}; save it anew") from error
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"{path}: expected TOML: {error}") from error
    try:
        taskset = taskset_from_dict(data)
        taskset.check(needed_strings)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    return taskset


def taskset_from_dict(data: Mapping[str, object]) -> TaskSet:
    """Build a task set from the contents of its file; what it means is left to `TaskSet.check`.

    Errors: TaskError naming the key that is unknown, missing, of a wrong type, or not among inputs or outputs
    """
    _check_keys("", data, _TASKSET_KEYS)
    inputs = _strings("inputs", data["inputs"])
    outputs = _strings("outputs", data["outputs"])
    lengths = []
    for index, length in enumerate(_list("lengths", data["lengths"])):
        if not isinstance(length, int) or isinstance(length, bool):
            raise TaskError(f"lengths[{index}]: expected a whole number, found {length!r}")
        lengths.append(length)
    tasks = [_read_task(index, task, inputs, outputs) for index, task in enumerate(_list("tasks", data["tasks"]))]
    return TaskSet(inputs, outputs, tuple(lengths), tuple(tasks))


def _read_task(index: int, data: object, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Task:
    key = f"tasks[{index}]"
    task = _table(key, data)
    _check_keys(f"{key}.", task, _TASK_KEYS)
    name = task["name"]
    if not isinstance(name, str):
        raise TaskError(f"{key}.name: expected a string, found {name!r}")
    expressions = _strings(f"{key}.expressions", task["expressions"])
    answers = _table(f"{key}.table", task["table"])
    for given in answers:
        if given not in inputs:
            raise TaskError(f"{key}.table: {given!r} is not one of inputs{nearest_name(given, inputs)}")
    table = []
    for given in inputs:
        if given not in answers:
            raise TaskError(f"{key}.table: expected an output for each input, found none for {given!r}; add it")
        answer = answers[given]
        if not isinstance(answer, str):
            raise TaskError(f"{key}.table.{given}: expected a string, found {answer!r}")
        if answer not in outputs:
            raise TaskError(
                f"{key}.table.{given}: {answer!r} is not one of outputs; add it there or choose another"
                f"{nearest_name(answer, outputs)}"
            )
        table.append(outputs.index(answer))
    return Task(name, expressions, tuple(table))


def _check_keys(prefix: str, data: Mapping[str, object], known: Collection[str]) -> None:
    for key in data:
        if key not in known:
            raise TaskError(f"{prefix}{key}: unknown key, expected {', '.join(known)}{nearest_name(key, known)}")
    for key in known:
        if key not in data:
            raise TaskError(f"{prefix}{key}: missing; add it")


def _table(key: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TaskError(f"{key}: expected a table, found {value!r}")
    return value


def _list(key: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise TaskError(f"{key}: expected a list, found {value!r}")
    return value


def _strings(key: str, value: object) -> tuple[str, ...]:
    strings = []
    for index, item in enumerate(_list(key, value)):
        if not isinstance(item, str):
            raise TaskError(f"{key}[{index}]: expected a string, found {item!r}")
        strings.append(item)
    return tuple(strings)
