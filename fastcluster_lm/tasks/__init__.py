"""What the model is asked: instructions as regular expressions, tasks as lookup tables; it never reaches torch."""

from .expressions import Expression
from .files import load_taskset, taskset_from_dict
from .from_config import describe_taskset, taskset_of
from .generate import STYLES, generate_taskset, letters_of
from .taskset import Task, TaskSet

__all__ = [
    "STYLES",
    "Expression",
    "describe_taskset",
    "taskset_of",
    "Task",
    "TaskSet",
    "generate_taskset",
    "letters_of",
    "load_taskset",
    "taskset_from_dict",
]
