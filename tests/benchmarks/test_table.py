"""The table of benchmarks/README.md is what the results say, line for line."""

from pathlib import Path

from fastcluster_lm.benchmarks.table import read_results, table

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def test_the_published_table_is_that_of_the_results():
    lines = read_results()
    assert len(lines) > 10
    shown = table(lines)
    assert shown in README.read_text(encoding="utf-8")
    # what fell short is there too
    assert shown.count("**short**") == sum(line.get("pass") is False for line in lines)
