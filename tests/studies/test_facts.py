"""The table of facts: what may stand in it, and the rule by which it is made, on packages of three countries."""

import json
import sys

import pytest

from fastcluster_lm.studies import facts
from tests.studies import make_facts

# Babel's tender today; countryinfo's currencies
TENDER = {"AA": ["AAA"], "BB": ["BBN"], "CC": ["CCC", "USD"], "DD": ["DDD"], "EE": ["EEE"]}
LISTED = {"AA": ["OLD", "AAA"], "BB": ["BBO"], "CC": ["CCC", "USD"], "DD": ["DDD"], "EE": ["EEE"]}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Install stand-ins for the two packages, and a table to write."""
    (tmp_path / "countryinfo" / "data").mkdir(parents=True)
    (tmp_path / "babel").mkdir()
    for name in ("countryinfo", "babel"):
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / f"{name}-1.5.dist-info").mkdir()
        (tmp_path / f"{name}-1.5.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.5\n")
    (tmp_path / "babel" / "numbers.py").write_text(f"TENDER = {TENDER}\nget_territory_currencies = TENDER.get\n")
    for code, currencies in LISTED.items():
        country = {
            "name": f"Land {code}", "ISO": {"alpha2": code}, "capital": f"City {code}", "region": "Europe",
            "currencies": currencies, "demonym": f"{code}ish", "tld": [f".{code.lower()}", ".x"],
            "population": 7_999_999 if code == "DD" else 8_000_000,
        }  # fmt: skip
        if code == "EE":
            del country["demonym"]
        (tmp_path / "countryinfo" / "data" / f"{code}.json").write_text(json.dumps(country))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("countryinfo", "babel", "babel.numbers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for module in (facts, make_facts):
        monkeypatch.setattr(module, "PATH", tmp_path / "facts.json")
    yield
    for name in ("babel", "babel.numbers"):
        sys.modules.pop(name, None)


def test_a_country_needs_one_tender_of_today_that_both_know(packages):
    make_facts.make_facts()
    (one,) = facts.load_facts()
    # BB's currency is a former one, CC has two, DD too few people, EE no demonym
    assert (one.name, one.answers["currency"], one.answers["domain"]) == ("Land AA", "AAA", ".aa")
    assert json.loads(facts.PATH.read_text())["source"] == "countryinfo 1.5 and babel 1.5"


def test_the_table_is_not_made_without_its_sources(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install countryinfo babel"):
        make_facts.make_facts()


def test_every_country_of_the_table_answers_every_question():
    table = facts.load_facts()
    assert len(table) == len({one.name for one in table}) > 80
    for one in table:
        assert list(one.answers) == list(facts.RELATIONS) and all(one.answers.values())
        assert one.answers["domain"].startswith(".") and len(one.answers["currency"]) == 3
    # former ones of countryinfo 1.0.1
    assert not {"BYR", "CHE", "CLF", "CUC", "VEF", "ZMK"} & {one.answers["currency"] for one in table}
    for ways in facts.WORDINGS.values():
        assert all(way.count("{}") == 1 for way in ways)
