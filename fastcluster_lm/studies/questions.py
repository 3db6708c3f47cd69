"""Questions on countries in several wordings, zero-shot or behind examples; it knows no model and no template."""

from collections.abc import Sequence

import numpy as np

from fastcluster_lm.errors import UsageError
from fastcluster_lm.studies.facts import RELATIONS, WORDINGS, Country
from fastcluster_lm.tasks import Prompt

N_COUNTRIES, N_WORDINGS, N_SHOTS = 8, 4, 2
# what a prompt's examples are about: its own task, or another one, of which they then are a control
EXAMPLES = ("own", "other")


# what stands between a question and its answer in plain text
CUE = "\nAnswer:"


def make_prompts(facts: Sequence[Country], *, n_shots: int, seed: int, examples: str = "own") -> list[Prompt]:
    """Ask every relation of every chosen country in every chosen wording, which is named by the number of its form.

    A seed chooses countries and forms, the same ones whatever the examples; seeds share one pool of eight forms, so an
    interval over them is about this pool. All relations are asked in the same forms, so that a wording and a country
    tell nothing of the task. Each prompt draws its own examples among the countries that are never asked for. Examples
    of the own task still show what is asked, which the question then need not; those of another, drawn anew for each
    prompt, tell the two apart
    Errors: UsageError for examples that are neither own nor other, or too few countries
    """
    if examples not in EXAMPLES:
        raise UsageError(f"examples: expected one of {', '.join(EXAMPLES)}, got {examples!r}")
    if len(facts) < N_COUNTRIES + n_shots:
        raise UsageError(f"expected {N_COUNTRIES + n_shots} countries or more to ask for and to show, got {len(facts)}")
    rng, drawing = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    order = rng.permutation(len(facts))
    asked, rest = order[:N_COUNTRIES].tolist(), order[N_COUNTRIES:]
    n_forms = min(len(ways) for ways in WORDINGS.values())
    forms = rng.permutation(n_forms)[:N_WORDINGS].tolist()
    prompts = []
    for task, relation in enumerate(RELATIONS):
        for form in forms:
            for country in (facts[at] for at in asked):
                shown_task = relation
                if examples == "other":
                    shown_task = RELATIONS[(task + 1 + int(drawing.integers(len(RELATIONS) - 1))) % len(RELATIONS)]
                shown = [facts[other] for other in drawing.choice(rest, n_shots, replace=False).tolist()]
                pairs = tuple(_ask(one, shown_task, form) for one in shown)
                question, answer = _ask(country, relation, form)
                prompts.append(
                    Prompt(question, answer, relation, str(form), country.name, CUE, pairs, shown_task=shown_task)
                )
    return prompts


def _ask(country: Country, relation: str, form: int) -> tuple[str, str]:
    return WORDINGS[relation][form].format(country.name), country.answers[relation]
