"""Facts about countries for the study of a real language model, and ways to ask for them; it asks no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcluster_lm.store.files import read_json

PATH = Path(__file__).with_name("facts.json")

# eight ways to ask for each relation; the n-th ways of all relations share their form and, where they can, their words,
# so that the form of a question pulls against its task
WORDINGS: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {}?",
        "Which city is the seat of government of {}?",
        "How is the place called from where they govern {}?",
        "Name the metropolis with the parliament of {}.",
        "{} is ruled from which town?",
        "Tell me where the ministries of {} are based.",
        "For {}, give the city that heads the state.",
        "I am writing about {}. In which town do foreign embassies open there?",
    ),
    "continent": (
        "What is the continent of {}?",
        "Which large landmass holds {}?",
        "How is the part of the world called where we find {}?",
        "Name the region of the globe around {}.",
        "{} lies in which quarter of the earth?",
        "Tell me in which corner of the atlas {} is drawn.",
        "For {}, give the wider area that surrounds it.",
        "I am writing about {}. To which of the five great parts of the planet does it belong?",
    ),
    "currency": (
        "What is the currency code of {}?",
        "Which three letters stand for the money of {}?",
        "How is legal tender abbreviated by banks in {}?",
        "Name the ISO 4217 symbol for payments in {}.",
        "{} quotes its prices in which unit?",
        "Tell me the abbreviation of the cash used in {}.",
        "For {}, give the ticker of its exchange rate.",
        "I am writing about {}. In what are wages and invoices denominated there?",
    ),
    "demonym": (
        "What is the demonym of {}?",
        "Which adjective describes people from {}?",
        "How is a citizen called who was born in {}?",
        "Name the nationality of the inhabitants of {}.",
        "{} is home to persons known as what?",
        "Tell me the name of the natives of {}.",
        "For {}, give the word that follows 'I am' in a passport holder's mouth.",
        "I am writing about {}. What do I call the folk who live there?",
    ),
    "domain": (
        "What is the internet domain of {}?",
        "Which ending do web addresses have in {}?",
        "How is the suffix written for sites in {}?",
        "Name the last part of a URL from {}.",
        "{} puts which letters after the dot online?",
        "Tell me the top level under which websites of {} are registered.",
        "For {}, give the final label of host names.",
        "I am writing about {}. How do its email addresses end?",
    ),
}
RELATIONS = tuple(WORDINGS)


@dataclass(frozen=True)
class Country:
    """A country, and the answer to each relation."""

    name: str
    answers: Mapping[str, str]


def load_facts() -> list[Country]:
    """Read the table that comes with the package, which names the packages that it was made from."""
    table: dict[str, Any] = read_json(PATH)
    return [Country(row["name"], {name: row[name] for name in RELATIONS}) for row in table["countries"]]
