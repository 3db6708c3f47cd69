"""Tasks in words: every mistake in their file is named with its key, and prompts hold what they should."""

import re
from collections import Counter
from pathlib import Path

import pytest

from fastcluster_lm.errors import TaskError
from fastcluster_lm.tasks import Question, QuestionSet, load_questions, load_taskset
from fastcluster_lm.tasks.questions import questions_from_dict

GOOD = """\
ending = " Answer:"
[[tasks]]
name = "capital"
wordings = ["Capital of {input}?", "{input} is ruled from {where}?"]
table = { France = "Paris", Japan = "Tokyo", "Sri Lanka" = "Colombo" }
[[tasks]]
name = "currency"
wordings = ["Currency of {input}?"]
table = { Japan = "yen", France = "euro", "Sri Lanka" = "rupee" }
"""


def test_a_prompt_holds_wording_input_and_ending_and_what_is_known_of_it(tmp_path):
    (tmp_path / "asked.toml").write_text(GOOD)
    questions = load_questions(tmp_path / "asked.toml")
    assert questions.inputs == ("France", "Japan", "Sri Lanka") and questions.n_wordings == 3
    prompts = questions.prompts(100, seed=0)
    assert len(prompts) == 9
    # braces that are no place for the input stay
    found = next(one for one in prompts if one.wording.endswith("{where}?") and one.input == "Sri Lanka")
    assert found.question == "Sri Lanka is ruled from {where}? Answer:"
    assert (found.task, found.answer) == ("capital", "Colombo")
    assert {(one.input, one.answer) for one in prompts if one.task == "currency"} == {
        ("Japan", "yen"), ("France", "euro"), ("Sri Lanka", "rupee"),
    }  # fmt: skip


def test_fewer_prompts_are_whole_inputs_drawn_by_the_seed():
    answers = {f"i{n}": str(n) for n in range(20)}
    tasks = (Question("a", ("a {input}", "b {input}"), answers), Question("b", ("c {input}",), answers))
    questions = QuestionSet(tuple(answers), tasks)
    drawn = {}
    for seed in range(5):
        prompts = questions.prompts(17, seed)
        # 17 has room for five inputs in three wordings each
        assert Counter(one.input for one in prompts).most_common()[-1][1] == 3 and len(prompts) == 15
        drawn[seed] = {one.input for one in prompts}
        assert prompts == questions.prompts(17, seed)
    assert len(set(map(frozenset, drawn.values()))) > 1
    with pytest.raises(TaskError, match=re.escape("room for 3 prompts, one for each wording, got 2; raise")):
        questions.prompts(2, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"Currency of {input}?"', '"Currency?"', "tasks[1].wordings[0]: expected {input} where the input goes"),
        ('"Currency of {input}?"', '"Currency of {inptu}?"', "found 'Currency of {inptu}?'; put it in"),
        ('"Currency of {input}?"', '"Capital of {input}?"', "stands at tasks[0].wordings[0] too"),
        ('["Currency of {input}?"]', "[]", "tasks[1].wordings: expected at least one wording"),
        ('["Currency of {input}?"]', '"Currency of {input}?"', "tasks[1].wordings: expected a list"),
        ('["Currency of {input}?"]', "[3]", "tasks[1].wordings[0]: expected a string, found 3"),
        ('Japan = "yen", ', "", "tasks[1].table: expected an answer for 'Japan', as tasks[0] has one"),
        (
            'Japan = "yen"',
            'Japan = "yen", Jappan = "yen"',
            "'Jappan' is not an input of tasks[0]; did you mean 'Japan'",
        ),
        ('"yen"', "3", "tasks[1].table.Japan: expected a string, found 3"),
        ('name = "currency"', 'name = "capital"', "tasks[1].name: 'capital' is the name of tasks[0] too"),
        ('name = "currency"', 'name = ""', "tasks[1].name: expected a name"),
        ('name = "currency"', 'nmae = "currency"', "tasks[1].nmae: unknown key, expected name, wordings, table"),
        ('name = "currency"\n', "", "tasks[1].name: missing; add it"),
        ('ending = " Answer:"', "ending = 3", "ending: expected a string, found 3"),
        ('ending = " Answer:"', 'endnig = ""', "endnig: unknown key, expected ending, tasks; did you mean 'ending'?"),
        ('ending = " Answer:"', "lengths = [3]", "this is a task set of expressions, for runs of `fclm train`"),
        ('ending = " Answer:"', "ending = ", "expected TOML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path, old, new, message):
    assert old in GOOD
    (tmp_path / "asked.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(TaskError) as caught:
        load_questions(tmp_path / "asked.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'asked.toml'}: ") and message in str(caught.value)


def test_one_task_alone_or_none_is_refused():
    with pytest.raises(TaskError, match="expected two tasks or more, found 0"):
        questions_from_dict({"tasks": []}).check()
    one = QuestionSet(("x",), (Question("a", ("{input}",), {"x": "y"}),))
    with pytest.raises(TaskError, match="expected two tasks or more, found 1"):
        one.check()
    with pytest.raises(TaskError, match=re.escape("tasks[0].table: expected an answer for each input, found none")):
        QuestionSet((), (Question("a", ("{input}",), {}), Question("b", ("b {input}",), {}))).check()


def test_a_missing_file_gets_the_nearest_name(tmp_path):
    (tmp_path / "asked.toml").write_text(GOOD)
    with pytest.raises(TaskError, match="no such task file; did you mean 'asked.toml'"):
        load_questions(tmp_path / "aksed.toml")


def test_the_two_kinds_of_task_files_are_told_apart(tmp_path):
    (tmp_path / "asked.toml").write_text(GOOD)
    with pytest.raises(TaskError, match="asked in words, of a model of transformers"):
        load_taskset(tmp_path / "asked.toml")


def test_the_facts_are_questions_like_any_others():
    from fastcluster_lm.studies.fact_questions import fact_questions
    from fastcluster_lm.studies.facts import load_facts

    questions = fact_questions()
    questions.check()
    known = {country.name: country.answers for country in load_facts()}
    prompts = questions.prompts(10**6, seed=0)
    assert len(prompts) == len(known) * questions.n_wordings
    assert all(one.answer == known[one.input][one.task] for one in prompts)
    assert all(one.input in one.question and "{" not in one.question for one in prompts)
    # the last token tells nothing of task, wording or input
    assert len({one.question.split("\n")[-1] for one in prompts}) == 1


def test_the_file_in_the_help_is_one_that_is_read(tmp_path: Path):
    from fastcluster_lm.cli.probe import probe

    shown = re.search(r"\x08\n(.*?)\n\n", probe.help, re.DOTALL).group(1)
    lines = [line.strip() for line in shown.splitlines()]
    (tmp_path / "shown.toml").write_text("\n".join([*lines, *(line.replace("capital", "c") for line in lines[1:])]))
    with pytest.raises(TaskError, match="stands at"):
        load_questions(tmp_path / "shown.toml")
    (tmp_path / "shown.toml").write_text("\n".join([*lines, '[[tasks]]\nname="b"\nwordings=["{input}"]', lines[-1]]))
    assert load_questions(tmp_path / "shown.toml").inputs == ("France", "Japan")
