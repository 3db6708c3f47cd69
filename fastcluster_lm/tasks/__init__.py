"""What the model is asked: instructions as regular expressions, tasks as lookup tables; it never reaches torch."""

from fastcluster_lm.tasks.expressions import Expression
from fastcluster_lm.tasks.files import load_taskset, taskset_from_dict
from fastcluster_lm.tasks.from_config import describe_taskset, taskset_of
from fastcluster_lm.tasks.generate import STYLES, generate_taskset, letters_of
from fastcluster_lm.tasks.questions import Prompt, Question, QuestionSet, load_questions
from fastcluster_lm.tasks.taskset import Task, TaskSet

__all__ = [
    "STYLES",
    "Expression",
    "Prompt",
    "Question",
    "QuestionSet",
    "describe_taskset",
    "taskset_of",
    "Task",
    "TaskSet",
    "generate_taskset",
    "letters_of",
    "load_questions",
    "load_taskset",
    "taskset_from_dict",
]
