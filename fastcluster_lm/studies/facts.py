"""Facts about countries for the study of a real language model: read, and made from packages; it asks no model."""

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcluster_lm.errors import UsageError
from fastcluster_lm.store.files import encode_json, read_json, replace_file

PATH = Path(__file__).with_name("facts.json")
# below this many people a small model knows little of a country; ours
FEWEST_PEOPLE = 8_000_000

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
    """Read the table that comes with the package."""
    table: dict[str, Any] = read_json(PATH)
    return [Country(row["name"], {name: row[name] for name in RELATIONS}) for row in table["countries"]]


def make_facts() -> None:
    """Write the table anew: python -c "from fastcluster_lm.studies import facts; facts.make_facts()".

    A country stays out unless it has one legal tender today that both packages know, so that no former currency and
    no choice among several is asked for. Capitals are countryinfo's: those of Burundi and Kazakhstan are former ones,
    which only the examples and the accuracy see, since no score rests on an answer.
    Errors: UsageError without the packages `countryinfo` and `babel`
    Source: the packages countryinfo (MIT licence), and babel (BSD) for the tender; their versions stand in the table
    """
    spec = importlib.util.find_spec("countryinfo")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("babel") is None:
        raise UsageError("the table of facts is made from countryinfo and babel; pip install countryinfo babel")
    # only the script that makes the table needs it
    from babel.numbers import get_territory_currencies

    rows = []
    for path in sorted((Path(spec.submodule_search_locations[0]) / "data").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        known = ("name", "capital", "region", "currencies", "demonym", "tld")
        # a union of two is none that a question can name
        if " and " in found.get("name", "") or not all(found.get(name) for name in known):
            continue
        tender = get_territory_currencies(found["ISO"]["alpha2"])
        if len(tender) != 1 or tender[0] not in found["currencies"]:
            continue
        if (found.get("population") or 0) >= FEWEST_PEOPLE:
            answers = (found["capital"], found["region"], tender[0], found["demonym"], found["tld"][0])
            rows.append({"name": found["name"], **dict(zip(RELATIONS, answers, strict=True))})
    head = {"source": " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("countryinfo", "babel"))}
    replace_file(
        PATH, encode_json({**head, "licence": "MIT; BSD-3-Clause, its data Unicode-3.0", "countries": rows}, "facts")
    )
