"""Facts about countries for the study of a real language model: read, and made from a package; it asks no model."""

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

# five ways to ask for each relation; the n-th ways of all relations share their form and, where they can, their words,
# so that the form of a question pulls against its task
WORDINGS: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {}?",
        "Which city is the seat of government of {}?",
        "How is the place called from where they govern {}?",
        "Name the metropolis with the parliament of {}.",
        "{} is ruled from which town?",
    ),
    "continent": (
        "What is the continent of {}?",
        "Which large landmass holds {}?",
        "How is the part of the world called where we find {}?",
        "Name the region of the globe around {}.",
        "{} lies in which quarter of the earth?",
    ),
    "currency": (
        "What is the currency code of {}?",
        "Which three letters stand for the money of {}?",
        "How is legal tender abbreviated by banks in {}?",
        "Name the ISO 4217 symbol for payments in {}.",
        "{} quotes its prices in which unit?",
    ),
    "demonym": (
        "What is the demonym of {}?",
        "Which adjective describes people from {}?",
        "How is a citizen called who was born in {}?",
        "Name the nationality of the inhabitants of {}.",
        "{} is home to persons known as what?",
    ),
    "domain": (
        "What is the internet domain of {}?",
        "Which ending do web addresses have in {}?",
        "How is the suffix written for sites in {}?",
        "Name the last part of a URL from {}.",
        "{} puts which letters after the dot online?",
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

    Errors: UsageError without the package `countryinfo`
    Source: the package countryinfo, MIT licence; its version stands in the table; some of its currencies are former
            ones, which only the examples and the accuracy see: no score rests on an answer
    """
    spec = importlib.util.find_spec("countryinfo")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the table of facts is made from countryinfo; pip install countryinfo")
    rows = []
    for path in sorted((Path(spec.submodule_search_locations[0]) / "data").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        known = ("name", "capital", "region", "currencies", "demonym", "tld")
        # a union of two is none that a question can name
        if " and " in found.get("name", ""):
            continue
        if all(found.get(name) for name in known) and (found.get("population") or 0) >= FEWEST_PEOPLE:
            answers = (found["capital"], found["region"], found["currencies"][0], found["demonym"], found["tld"][0])
            rows.append({"name": found["name"], **dict(zip(RELATIONS, answers, strict=True))})
    head = {"source": f"countryinfo {importlib.metadata.version('countryinfo')}", "licence": "MIT"}
    replace_file(PATH, encode_json({**head, "countries": rows}, "facts"))
