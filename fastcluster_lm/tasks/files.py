"""Task sets read from TOML, each error naming file and key; it writes no files and draws no tasks."""

from collections.abc import Collection, Mapping
from pathlib import Path

from fastcluster_lm import untrusted
from fastcluster_lm.errors import TaskError, nearest_name
from fastcluster_lm.tasks.taskset import Task, TaskSet

_TASKSET_KEYS = ("inputs", "outputs", "lengths", "tasks")
_TASK_KEYS = ("name", "expressions", "table")


def load_taskset(path: str | Path, *, needed_strings: int = 1) -> TaskSet:
    """Read and check a task set.

    Errors: TaskError naming the file, and the key where one is at fault
    """
    data = read_toml(path)
    try:
        taskset = taskset_from_dict(data)
        taskset.check(needed_strings)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    return taskset


def read_toml(path: str | Path) -> dict[str, object]:
    """Read a task file.

    Errors: TaskError naming the file, the nearest one if there is none such
    """
    path = Path(path)
    try:
        return untrusted.read_toml(path)
    except FileNotFoundError as error:
        beside = [other.name for other in path.parent.glob("*.toml")]
        raise TaskError(f"{path}: no such task file{nearest_name(path.name, beside)}") from error
    except OSError as error:
        raise TaskError(f"{path}: the task file cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TaskError(f"{path}: expected TOML, found {error}") from error


def taskset_from_dict(data: Mapping[str, object]) -> TaskSet:
    """Build a task set from the contents of its file; what it means is left to `TaskSet.check`.

    Errors: TaskError naming the key that is unknown, missing, of a wrong type, or not among inputs or outputs
    """
    asked = data.get("tasks")
    if isinstance(asked, list) and any(isinstance(task, Mapping) and "wordings" in task for task in asked):
        raise TaskError(
            "tasks: these are asked in words, of a model of transformers; a model of `fclm train` is asked in "
            "expressions: inputs, outputs, lengths and [[tasks]] with name, expressions and table"
        )
    check_keys("", data, _TASKSET_KEYS, _TASKSET_KEYS)
    inputs = strings_at("inputs", data["inputs"])
    outputs = strings_at("outputs", data["outputs"])
    lengths = []
    for index, length in enumerate(list_at("lengths", data["lengths"])):
        if not isinstance(length, int) or isinstance(length, bool):
            raise TaskError(f"lengths[{index}]: expected a whole number, found {length!r}")
        lengths.append(length)
    tasks = [_read_task(index, task, inputs, outputs) for index, task in enumerate(list_at("tasks", data["tasks"]))]
    return TaskSet(inputs, outputs, tuple(lengths), tuple(tasks))


def _read_task(index: int, data: object, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Task:
    key, task, name = named_task(index, data, _TASK_KEYS)
    expressions = strings_at(f"{key}.expressions", task["expressions"])
    answers = table_at(f"{key}.table", task["table"])
    for given in answers:
        if given not in inputs:
            raise TaskError(f"{key}.table: {given!r} is not one of inputs{nearest_name(given, inputs)}")
    table = []
    for given in inputs:
        if given not in answers:
            raise TaskError(f"{key}.table: expected an output for each input, found none for {given!r}; add it")
        answer = string_at(f"{key}.table.{given}", answers[given])
        if answer not in outputs:
            raise TaskError(
                f"{key}.table.{given}: {answer!r} is not one of outputs; add it there or choose another"
                f"{nearest_name(answer, outputs)}"
            )
        table.append(outputs.index(answer))
    return Task(name, expressions, tuple(table))


def check_keys(prefix: str, data: Mapping[str, object], known: Collection[str], needed: Collection[str]) -> None:
    """Refuse a key that is not known, naming the nearest, and one that is needed and missing."""
    for key in data:
        if key not in known:
            raise TaskError(f"{prefix}{key}: unknown key, expected {', '.join(known)}{nearest_name(key, known)}")
    for key in needed:
        if key not in data:
            raise TaskError(f"{prefix}{key}: missing; add it")


def table_at(key: str, value: object) -> Mapping[str, object]:
    """Take a value that must be a table."""
    if not isinstance(value, Mapping):
        raise TaskError(f"{key}: expected a table, found {value!r}")
    return value


def list_at(key: str, value: object) -> list[object]:
    """Take a value that must be a list."""
    if not isinstance(value, list):
        raise TaskError(f"{key}: expected a list, found {value!r}")
    return value


def string_at(key: str, value: object) -> str:
    """Take a value that must be a string."""
    if not isinstance(value, str):
        raise TaskError(f"{key}: expected a string, found {value!r}")
    return value


def strings_at(key: str, value: object) -> tuple[str, ...]:
    """Take a value that must be a list of strings."""
    return tuple(string_at(f"{key}[{index}]", item) for index, item in enumerate(list_at(key, value)))


def named_task(index: int, value: object, keys: Collection[str]) -> tuple[str, Mapping[str, object], str]:
    """Take an entry of [[tasks]] that must have these keys, and no others; give its place, itself and its name."""
    key = f"tasks[{index}]"
    task = table_at(key, value)
    check_keys(f"{key}.", task, keys, keys)
    return key, task, string_at(f"{key}.name", task["name"])
