"""Verdicts: a planted effect is supported, its opposite is not, noise is undecided; a plan runs each cell once."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fastcluster_lm.cli import main
from fastcluster_lm.errors import UsageError
from fastcluster_lm.studies import APART, STUDIES, StudyFolder, describe_plan, perform
from fastcluster_lm.studies.cells import Cell, CellStore, Plan, cells_of, preset_config
from fastcluster_lm.studies.code import code_digest
from fastcluster_lm.studies.page import findings_page
from fastcluster_lm.studies.results import draw_lines, write_results
from fastcluster_lm.studies.runs import judge_all, run_studies
from fastcluster_lm.studies.study import Arm, Lines, Measured, Study, judge

DONE: list[tuple[int, str]] = []


def write_number(config, folder: Path, options) -> None:
    """Stand in for a run: keep a number drawn from the seed, with the effect asked for."""
    if options.get("fail"):
        raise KeyboardInterrupt
    DONE.append((config.seed, options.get("name", "")))
    noise = np.random.default_rng([config.seed, len(options["name"])]).normal(0, 0.05)
    (folder / "number").write_text(str(options.get("effect", 0.0) + noise))


def measure(cells) -> Measured:
    value, control = (float((cells[name] / "number").read_text()) for name in ("effect", "null"))
    rows = [{"arm": name, "x": x, "y": x * value} for name in ("effect", "null") for x in (1, 2)]
    return Measured(value, control, rows, {"twice": 2 * value})


def study_of(name: str = "made", effect: float = 1.0, margin: float = 0.0, fail: bool = False) -> Study:
    arms = {
        "effect": Arm(work=write_number, options=(("effect", effect), ("name", "effect"), ("fail", int(fail)))),
        "null": Arm(work=write_number, options=(("name", "null"),)),
    }
    words = {"question": "Is there one?", "claim": "There is one.", "statistic": "number", "control": "other number"}
    return Study(
        name=name, **words, margin=margin, arms=lambda preset: arms, measure=measure, figure=Lines("x", "y", "arm")
    )


@pytest.fixture(autouse=True)
def nothing_done():
    DONE.clear()


def found_with(values, controls) -> dict[int, Measured]:
    return {seed: Measured(*pair, []) for seed, pair in enumerate(zip(values, controls, strict=True))}


def test_the_rule_decides_planted_effects_and_leaves_noise_undecided():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, (2, 5))
    study = study_of(margin=0.1)
    assert judge(study, found_with(0.5 + noise[0], noise[1])).verdict == "supported"
    assert judge(study, found_with(noise[0], noise[1])).verdict == "not supported"
    assert judge(study, found_with(0.1 + noise[0], noise[1])).verdict == "undecided"
    assert "p < 0.05" in study.rule and "0.1" in study.rule


def test_planted_nulls_are_hardly_ever_supported():
    rng = np.random.default_rng(1)
    study = study_of()
    verdicts = [judge(study, found_with(*rng.normal(0, 1, (2, 5)))).verdict for _ in range(400)]
    # two-sided at 0.05, so half of it on either side
    assert verdicts.count("supported") / 400 == pytest.approx(0.025, abs=0.02)


def test_the_correction_over_all_studies_counts_those_that_were_not_run():
    values = [0.30, 0.25, 0.12, 0.33, 0.21]
    alone = judge(study_of(), found_with(values, [0.0] * 5))
    among = judge(study_of(), found_with(values, [0.0] * 5), n_studies=15)
    assert among.p == alone.p == alone.p_adjusted
    assert among.p_adjusted == pytest.approx(15 * alone.p)


def test_too_few_seeds_and_undefined_statistics_are_undecided():
    few = judge(study_of(), found_with([1.0] * 4, [0.0] * 4))
    assert (few.verdict, few.reason) == ("undecided", "4 seeds; a verdict needs 5")
    one = judge(study_of(), found_with([0.75], [0.5]))
    assert (one.mean, one.low, one.p, one.verdict) == (0.25, None, None, "undecided")
    gap = judge(study_of(), {**found_with([1.0] * 4, [0.0] * 4), 4: Measured(None, 0.0, [])})
    assert gap.verdict == "undecided" and "undefined at 1 of 5" in gap.reason


def test_equal_cells_of_two_studies_are_run_once_and_finished_ones_never_again(tmp_path):
    one, other = study_of("one"), study_of("other", effect=0.5)
    folder, said = StudyFolder(tmp_path), []
    run_studies([one, other], "nano", range(3), folder, said.append)
    assert sorted(DONE) == sorted([(s, n) for s in range(3) for n in ("effect", "effect", "null")])
    assert "9 runs, 0 of them finished" in said[0]
    assert sum(line.startswith("run ") for line in said) == 9 and any(one.rule in line for line in said)
    DONE.clear()
    run_studies([one, other], "nano", range(4), folder, said.append)
    assert {seed for seed, _ in DONE} == {3}


def test_a_stop_keeps_every_finished_cell_and_no_half_one(tmp_path):
    folder = StudyFolder(tmp_path)
    stops = replace(study_of("stops", fail=True))
    with pytest.raises(KeyboardInterrupt):
        run_studies([study_of("one"), stops], "nano", range(1), folder, lambda text: None)
    kept = [path for path in folder.cells.root.iterdir() if not path.name.startswith(".")]
    assert len(kept) == 2 and all((path / "cell.json").is_file() for path in kept)
    cells = cells_of(stops, "nano", 0)
    assert not folder.cells.has(cells["effect"]) and folder.cells.has(cells["null"])
    DONE.clear()
    run_studies([study_of("one")], "nano", range(1), folder, lambda text: None)
    assert DONE == []


def test_a_measurement_is_taken_again_where_its_cells_are_others(tmp_path):
    folder = StudyFolder(tmp_path)
    first = run_studies([study_of(effect=1.0)], "nano", [0], folder, lambda text: None)
    second = run_studies([study_of(effect=2.0)], "nano", [0], folder, lambda text: None)
    assert second["made"][0].statistic == pytest.approx(first["made"][0].statistic + 1)
    assert folder.measured(study_of(effect=2.0), "nano", 0) == second["made"][0]


def test_a_plan_of_too_many_runs_and_an_unknown_preset_are_refused(tmp_path):
    with pytest.raises(UsageError, match="at most 400 runs, got 402"):
        Plan.of([study_of()], "nano", range(201), CellStore(tmp_path))
    with pytest.raises(UsageError, match="did you mean 'nano'"):
        preset_config("nanno", 0)


def test_the_estimate_comes_from_finished_cells(tmp_path):
    study, folder = study_of(), StudyFolder(tmp_path)
    before = Plan.of([study], "nano", [0], folder.cells)
    assert before.seconds_left == pytest.approx(24.0)
    cell = cells_of(study, "nano", 0)["null"]
    folder.cells.fill(cell)
    (folder.cells.path(cell) / "cell.json").write_text(json.dumps({"seconds": 50.0, "cost": 1.0}))
    assert Plan.of([study], "nano", [0], folder.cells).seconds_left == pytest.approx(50.0)
    assert Plan.of([study], "paper", [0], folder.cells).seconds_left is None


def test_results_hold_the_claim_the_values_the_rule_and_a_figure(tmp_path):
    study, folder = study_of(), StudyFolder(tmp_path)
    found = run_studies([study], "nano", range(5), folder, lambda text: None)
    verdict = judge_all([study], found, n_studies=3)["made"]
    write_results(
        folder.of(study), study, found["made"], verdict, beside={"preset": "nano", "command": "c", "code": {"abc": 2}}
    )
    stored = json.loads((tmp_path / "made" / "verdict.json").read_text())
    assert (stored["verdict"], stored["n_studies"], stored["seeds"]) == ("supported", 3, [0, 1, 2, 3, 4])
    assert stored["differences"] == pytest.approx(
        [a - b for a, b in zip(stored["values"], stored["controls"], strict=True)]
    )
    assert stored["beside"]["twice"]["mean"] == pytest.approx(2 * np.mean(stored["values"]))
    assert stored["rule"] == study.rule and (stored["command"], stored["code"]) == ("c", {"abc": 2})
    rows = [json.loads(line) for line in (tmp_path / "made" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and {row["seed"] for row in rows} == set(range(5))
    assert (tmp_path / "made" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_is_of_a_complete_run_only():
    verdict = judge(study_of(), found_with([1.0, 1.1, 1.2, 1.0, 0.9], [0.0] * 5))
    page = findings_page([verdict], preset="nano", n_seeds=5, n_studies=1, code={"abc": 9}, measured_by="abc")
    row = next(line for line in page.splitlines() if line.startswith("| [made]"))
    assert "**supported**" in row and "1.04" in row and "`fclm study made --preset nano --seeds 5`" in row
    with pytest.raises(UsageError, match="all 2 studies"):
        findings_page([verdict], preset="nano", n_seeds=5, n_studies=2, code={}, measured_by="abc")
    few = judge(study_of(), found_with([1.0] * 4, [0.0] * 4))
    with pytest.raises(UsageError, match="got 1 at 4"):
        findings_page([few], preset="nano", n_seeds=4, n_studies=1, code={}, measured_by="abc")


@pytest.mark.parametrize(("places", "style"), [(("a", "b"), "None"), ((2, 1), "-")])
def test_a_figure_joins_numbers_in_order_and_no_names(places, style):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    draw_lines(
        axes, [{"x": place, "y": seed, "arm": "one"} for place in places for seed in (0, 1)], Lines("x", "y", "arm")
    )
    (line,) = axes.lines
    assert (line.get_linestyle(), list(line.get_ydata())) == (style, [0.5, 0.5])
    assert list(line.get_xdata()) == sorted(places)


def page_of(beside: list[dict], code: dict[str, int], note: str = "") -> list[str]:
    found = {seed: Measured(1.0 + seed / 9, 0.0, [], one, note) for seed, one in enumerate(beside)}
    return findings_page(
        [judge(study_of(), found)], preset="nano", n_seeds=5, n_studies=1, code=code, measured_by="abc"
    ).splitlines()


def test_the_page_puts_cases_into_a_table_and_names_gaps_and_notes():
    seeds = [
        {"alone": 1e-17, "size, a": 1200.0, "size, b": 2.0, "gain, b": 0.1 * s if s else None, "far, z": s}
        for s in range(5)
    ]
    page = page_of(seeds, {"abc": 9}, note="The search chose a.")
    assert "- The search chose a." in page and "- alone: 0" in page
    at = page.index("|  | size | gain |")
    # no interval where all seeds agree, and the number of seeds where some have no value
    assert page[at + 2] == "| a | 1200 | - |"
    assert page[at + 3].startswith("| b | 2 | 0.25 [0.0446, 0.455] (4 of 5 seeds) |")
    # a figure of other cases has a table of its own
    assert page[at + 5] == "|  | far |" and page[at + 7].startswith("| z | 2 [")


def test_the_page_says_where_runs_of_different_code_are_mixed():
    counts = ({"abc": 9}, {"old": 9}, {"abc": 4, "unknown": 5})
    whole, older, mixed = ("\n".join(page_of([{}] * 5, code)) for code in counts)
    assert "All 9 runs were made by one state of the code, `abc`, and measured by the same." in whole
    assert "All 9 runs were made by one state of the code, `old`, and measured by `abc`." in older
    assert "2 states of the code: 4 by `abc`, 5 by `unknown`; all are measured by `abc`.**" in mixed


def test_a_cell_names_the_code_that_made_it_and_another_code_measures_again(tmp_path, monkeypatch):
    study, folder = study_of(), StudyFolder(tmp_path)
    run_studies([study], "nano", [0], folder, lambda text: None)
    assert folder.cells.count_by_code([study], "nano", [0]) == {code_digest(): 2}
    assert folder.measured(study, "nano", 0) is not None
    old = folder.cells.path(cells_of(study, "nano", 0)["null"]) / "cell.json"
    old.write_text(json.dumps({"seconds": 1.0, "cost": 1.0}))
    assert folder.cells.count_by_code([study], "nano", [0]) == {code_digest(): 1, "unknown": 1}
    monkeypatch.setattr("fastcluster_lm.studies.runs.code_digest", lambda: "other")
    assert folder.measured(study, "nano", 0) is None


def test_the_reason_tells_a_difference_lost_in_correction_from_none():
    values = [0.30, 0.25, 0.12, 0.33, 0.21]
    reason = judge(study_of(), found_with(values, [0.0] * 5), n_studies=40).reason
    assert reason == "p = 0.00277 against the margin 0, 0.111 after Holm's correction over 40 studies"


def test_an_arm_with_a_seed_of_its_own_keeps_it():
    study = replace(study_of(), arms=lambda preset: {"one": Arm(seed=200), "other": Arm()})
    assert {name: cell.config.seed for name, cell in cells_of(study, "nano", 3).items()} == {"one": 200, "other": 3}


def test_all_studies_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcluster_lm.studies.STUDIES", {name: study_of(name) for name in ("one", "other")})
    verdicts = perform("all", "nano", 5, tmp_path, lambda text: None, page=tmp_path / "page.md")
    assert [verdict.verdict for verdict in verdicts] == ["supported", "supported"]
    page = (tmp_path / "findings.md").read_text()
    assert page == (tmp_path / "page.md").read_text()
    assert page.count("**supported**") == 2 and "fclm study other --preset nano --seeds 5" in page


def test_a_page_of_less_than_all_is_refused_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcluster_lm.studies.STUDIES", {"one": study_of("one")})
    for name, seeds in (("one", 5), ("all", 4)):
        with pytest.raises(UsageError, match=f"got {name} at {seeds}"):
            perform(name, "nano", seeds, tmp_path, lambda text: None, page=tmp_path / "page.md")
    assert DONE == []


def test_a_missing_package_is_named_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="studies need matplotlib, transformers; pip install"):
        perform("dynamics", "nano", 5, tmp_path, lambda text: None)


def test_the_command_lists_studies_prints_rules_and_verdicts_and_names_what_is_meant(tmp_path, monkeypatch):
    listed = CliRunner().invoke(main, ["study", "list", "--json"])
    assert [row["name"] for row in json.loads(listed.output)] == [*STUDIES, *APART]
    wrong = CliRunner().invoke(main, ["study", "dynamic"])
    assert wrong.exit_code == 2 and "did you mean 'dynamics'" in wrong.output
    monkeypatch.setattr("fastcluster_lm.studies.STUDIES", {"one": study_of("one")})
    done = CliRunner().invoke(main, ["study", "one", "-o", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0 and "one: supported" in done.stdout and study_of().rule in done.stdout
    # the rule stands before the first run
    assert done.stderr.index(study_of().rule) < done.stderr.index("run 1/")


@pytest.mark.parametrize("preset", ["nano", "paper"])
def test_every_study_has_a_plan_that_can_be_built(preset):
    for study in STUDIES.values():
        cells = cells_of(study, preset, 0)
        assert cells and all(isinstance(cell, Cell) for cell in cells.values())
        assert study.claim.endswith(".") and study.question.endswith("?")


def test_the_whole_plan_stays_within_400_runs(tmp_path):
    assert len(Plan.of(STUDIES.values(), "nano", range(5), CellStore(tmp_path)).cells) <= 400
    assert "5 seeds" in describe_plan("all", "nano", 5, tmp_path)


def test_an_unknown_study_is_named_with_its_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'dynamics'"):
        describe_plan("dynamic", "nano", 5, tmp_path)
