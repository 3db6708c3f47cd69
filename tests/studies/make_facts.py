"""Write the table of facts about countries anew: `python -m tests.studies.make_facts`; it asks no model."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path

from fastcluster_lm.store.files import encode_json, replace_file
from fastcluster_lm.studies.facts import PATH, RELATIONS

# below this many people a small model knows little of a country; ours
FEWEST_PEOPLE = 8_000_000


def make_facts() -> None:
    """Write the table anew.

    A country stays out unless it has one legal tender today that both packages know, so that no former currency and
    no choice among several is asked for. Capitals are countryinfo's: those of Burundi and Kazakhstan are former ones,
    which only the examples and the accuracy see, since no score rests on an answer.
    Errors: SystemExit without the packages `countryinfo` and `babel`
    Source: the packages countryinfo (MIT licence), and babel (BSD) for the tender; their versions stand in the table
    """
    spec = importlib.util.find_spec("countryinfo")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("babel") is None:
        raise SystemExit("the table of facts is made from countryinfo and babel; pip install countryinfo babel")
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


if __name__ == "__main__":
    make_facts()
