"""Tasks asked in words, for a language model that others trained: wordings, inputs, answers; it asks no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcluster_lm.errors import TaskError, nearest_name
from fastcluster_lm.tasks.files import check_keys, list_at, named_task, read_toml, string_at, strings_at, table_at

# what stands in a wording for the input
PLACE = "{input}"
_KEYS, _TASK_KEYS = ("ending", "tasks"), ("name", "wordings", "table")


@dataclass(frozen=True)
class Question:
    """A task in words: several ways to ask, each with {input} in it, and the answer to every input."""

    name: str
    wordings: tuple[str, ...]
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A question of one task about one input, in one wording, and what may stand before and behind it.

    task, wording, input, answer: its labels; the answer is the right one
    cue:        what stands between a question and its answer in plain text; in a chat the turns tell
    examples:   questions and answers that stand before it
    shown_task: the task of the examples; equal to task where there are none
    """

    question: str
    answer: str
    task: str
    wording: str
    input: str
    cue: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    shown_task: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Tasks over the same inputs; ending stands behind every wording, so that all prompts end in the same words."""

    inputs: tuple[str, ...]
    tasks: tuple[Question, ...]
    ending: str = ""

    @property
    def n_wordings(self) -> int:
        """Count the wordings of all tasks together."""
        return sum(len(task.wordings) for task in self.tasks)

    def prompts(self, n_prompts: int, seed: int) -> list[Prompt]:
        """Ask in every wording of every task for the same inputs, as many as n_prompts has room for, drawn by the seed.

        Errors: TaskError if there is not room for one
        """
        n_inputs = min(n_prompts // self.n_wordings, len(self.inputs))
        if n_inputs < 1:
            raise TaskError(
                f"expected room for {self.n_wordings} prompts, one for each wording, got {n_prompts}; raise --instances"
            )
        drawn = sorted(np.random.default_rng(seed).permutation(len(self.inputs))[:n_inputs].tolist())
        return [
            Prompt(
                question=wording.replace(PLACE, self.inputs[at]) + self.ending,
                answer=task.answers[self.inputs[at]],
                task=task.name,
                wording=f"{task.name}: {wording}",
                input=self.inputs[at],
                shown_task=task.name,
            )
            for task in self.tasks
            for wording in task.wordings
            for at in drawn
        ]

    def check(self) -> None:
        """Refuse questions whose scores would not be about tasks.

        Errors: TaskError naming the key at fault: fewer than two tasks, a name or wording twice, a wording without
                {input}, inputs that one task has and another has not
        """
        if len(self.tasks) < 2:
            raise TaskError(f"tasks: expected two tasks or more, found {len(self.tasks)}; clusters need two")
        if not self.inputs:
            raise TaskError(
                "tasks[0].table: expected an answer for each input, found none; write France = 'Paris', say"
            )
        names: dict[str, int] = {}
        asked: dict[str, str] = {}
        for index, task in enumerate(self.tasks):
            if not task.name:
                raise TaskError(f"tasks[{index}].name: expected a name, found an empty string; give the task a name")
            if names.setdefault(task.name, index) != index:
                raise TaskError(
                    f"tasks[{index}].name: {task.name!r} is the name of tasks[{names[task.name]}] too; rename one"
                )
            if not task.wordings:
                raise TaskError(f"tasks[{index}].wordings: expected at least one wording, found none; add one")
            for place, wording in enumerate(task.wordings):
                key = f"tasks[{index}].wordings[{place}]"
                if PLACE not in wording:
                    raise TaskError(f"{key}: expected {PLACE} where the input goes, found {wording!r}; put it in")
                if asked.setdefault(wording, key) != key:
                    raise TaskError(f"{key}: {wording!r} stands at {asked[wording]} too; word one of them otherwise")
            self._check_inputs(index, task)

    def _check_inputs(self, index: int, task: Question) -> None:
        for given in task.answers:
            if given not in self.inputs:
                raise TaskError(
                    f"tasks[{index}].table: {given!r} is not an input of tasks[0]{nearest_name(given, self.inputs)}; "
                    "give every task the same inputs"
                )
        for given in self.inputs:
            if given not in task.answers:
                raise TaskError(
                    f"tasks[{index}].table: expected an answer for {given!r}, as tasks[0] has one, found none; add it"
                )


def load_questions(path: str | Path) -> QuestionSet:
    """Read and check a file of questions.

    Errors: TaskError naming the file, and the key where one is at fault
    """
    data = read_toml(path)
    try:
        questions = questions_from_dict(data)
        questions.check()
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from error
    return questions


def questions_from_dict(data: Mapping[str, object]) -> QuestionSet:
    """Build questions from the contents of their file; what they mean is left to `QuestionSet.check`.

    Errors: TaskError naming the key that is unknown, missing or of a wrong type
    """
    if "lengths" in data:
        raise TaskError(
            "lengths: this is a task set of expressions, for runs of `fclm train`; a model of transformers is asked in "
            f"words: [[tasks]] with name, wordings that contain {PLACE}, and table"
        )
    check_keys("", data, _KEYS, ("tasks",))
    ending = string_at("ending", data.get("ending", ""))
    tasks = tuple(_read_question(index, task) for index, task in enumerate(list_at("tasks", data["tasks"])))
    return QuestionSet(tuple(tasks[0].answers) if tasks else (), tasks, ending)


def _read_question(index: int, data: object) -> Question:
    key, task, name = named_task(index, data, _TASK_KEYS)
    table = table_at(f"{key}.table", task["table"])
    answers = {given: string_at(f"{key}.table.{given}", answer) for given, answer in table.items()}
    return Question(name, strings_at(f"{key}.wordings", task["wordings"]), answers)
