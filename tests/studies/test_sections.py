"""The page of findings: a study apart writes its own section there, once, and `all` leaves it alone."""

import pytest

from fastcluster_lm.errors import UsageError
from fastcluster_lm.studies import perform
from fastcluster_lm.studies.experiments import real_llm
from fastcluster_lm.studies.sections import sections_of, with_section
from fastcluster_lm.studies.study import Lines, Measured, Study
from tests.studies.test_study import study_of

PAGE = "# Findings\n\n| study |\n|---|\n| one |\n\n## What was compared\n\n- a figure: 1 [0, 2]\n"


def apart(by_kind: dict[str, float]) -> Study:
    """Make a study whose rows hold, for two layers, a value for each kind and the layer's number for each column."""
    made = study_of("made")

    def measure(cells) -> Measured:
        found = made.measure(cells)
        rows = [
            {"prompts": kind, "layer": layer, **dict.fromkeys(real_llm.COLUMNS, layer + value)}
            for kind, value in by_kind.items()
            for layer in (1, 2)
        ]
        return Measured(found.statistic, found.control, rows, {"a figure": 0.25})

    words = {"question": "Is there one?", "claim": "There is one.", "statistic": "number", "control": "other number"}
    figure = Lines("layer", "share", "prompts")
    return Study(
        "made", **words, margin=0.0, arms=made.arms, measure=measure, figure=figure, alone=True, note="Tried before"
    )


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr("fastcluster_lm.studies.APART", {"made": apart({"plain": 0.5, "shown": 0.25})})


def test_a_study_apart_writes_its_section_and_leaves_the_rest_of_the_page(made, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (verdict,) = perform("made", "nano", 5, tmp_path / "out", lambda text: None, page=page)
    text = page.read_text()
    assert text.startswith(PAGE) and (verdict.verdict, verdict.p_adjusted) == ("supported", verdict.p)
    (own,) = sections_of(text)
    assert text == f"{PAGE}\n{own}"
    lines = own.splitlines()
    assert lines[0] == "## made, apart from all" and "`fclm study made --preset nano --seeds 5`" in own
    assert any(line.startswith("| made | There is one. | **supported** | ") for line in lines)
    assert "- a figure: 0.25" in lines and "uncorrected" in own and "Tried before." in own
    columns = len(real_llm.COLUMNS)
    head = next(line for line in lines if line.startswith("| layer |"))
    assert head.count("plain: ") == head.count("shown: ") == columns
    assert lines[-2:] == [f"| {layer} |" + f" {layer}.5 |" * columns + f" {layer}.25 |" * columns for layer in (1, 2)]


def test_a_section_is_replaced_and_others_stay(made, tmp_path):
    page = tmp_path / "page.md"
    old = "## made, apart from all\n\nold words\n"
    other = "## other, apart from all\n\nits words\n"
    page.write_text("\n".join([PAGE, old, other]))
    perform("made", "nano", 5, tmp_path / "out", lambda text: None, page=page)
    text = page.read_text()
    assert "old words" not in text and text.startswith(PAGE) and text.count("## made, apart") == 1
    assert sections_of(text)[0] == other
    again = with_section(text, sections_of(text)[1])
    assert again == text


def test_all_studies_keep_the_sections_of_their_page(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcluster_lm.studies.STUDIES", {"one": study_of("one")})
    page, own = tmp_path / "page.md", "## made, apart from all\n\nits words\n"
    page.write_text(f"# Findings\n\nof long ago\n\n{own}")
    perform("all", "nano", 5, tmp_path / "out", lambda text: None, page=page)
    text = page.read_text()
    assert "of long ago" not in text and "| [one](#one) |" in text and text.endswith(f"\n\n{own}")
    assert (tmp_path / "out" / "findings.md").read_text() == text


def test_a_section_needs_a_page_and_enough_seeds(made, tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(UsageError, match="expected the page of findings, found none"):
        perform("made", "nano", 5, tmp_path / "out", lambda text: None, page=page)
    page.write_text(PAGE)
    with pytest.raises(UsageError, match="or of made, at 5 seeds or more, got made at 4"):
        perform("made", "nano", 4, tmp_path / "out", lambda text: None, page=page)
    assert page.read_text() == PAGE and not (tmp_path / "out" / "cells").exists()
