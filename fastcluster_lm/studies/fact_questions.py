"""The facts about countries as questions that any language model can be asked; it asks none."""

from fastcluster_lm.studies.facts import RELATIONS, WORDINGS, load_facts
from fastcluster_lm.tasks import Question, QuestionSet
from fastcluster_lm.tasks.questions import PLACE

# what every prompt of the study ends in, so that the last token tells nothing
ENDING = "\nAnswer:"


def fact_questions() -> QuestionSet:
    """Ask every relation of every country, in all wordings."""
    countries = load_facts()
    tasks = tuple(
        Question(
            relation,
            tuple(form.replace("{}", PLACE) for form in WORDINGS[relation]),
            {country.name: country.answers[relation] for country in countries},
        )
        for relation in RELATIONS
    )
    return QuestionSet(tuple(country.name for country in countries), tasks, ENDING)
