"""Whole experiments built from the rooms: each study is one question, its runs, its statistic and its verdict."""

from pathlib import Path

from fastcluster_lm.errors import UsageError, nearest_name
from fastcluster_lm.store.files import replace_file
from fastcluster_lm.studies.cells import MOST_CELLS, PRESETS, Plan
from fastcluster_lm.studies.code import code_digest
from fastcluster_lm.studies.experiments import APART, STUDIES, real_llm
from fastcluster_lm.studies.page import command_for, findings_page
from fastcluster_lm.studies.results import check_packages, write_results
from fastcluster_lm.studies.runs import Say, StudyFolder, describe, judge_all, run_studies
from fastcluster_lm.studies.sections import read_page, section, sections_of, with_section, with_sections
from fastcluster_lm.studies.study import FEWEST_SEEDS, Measured, Study, Verdict, judge

__all__ = [
    "APART",
    "FEWEST_SEEDS",
    "MOST_CELLS",
    "PRESETS",
    "STUDIES",
    "Measured",
    "Study",
    "StudyFolder",
    "Verdict",
    "chosen_studies",
    "describe_plan",
    "judge",
    "perform",
]


def chosen_studies(name: str, model: Path | None = None) -> list[Study]:
    """Give the study of that name, or all that need nothing but the package.

    model: the folder of the language model that a study apart asks; None: its own
    Errors: UsageError for an unknown name, the nearest one named, for a model that the study does not ask, or as
            real_llm.study_of
    """
    if model is not None:
        if name not in APART:
            raise UsageError(f"--model: expected study {', '.join(APART)}, got {name}, which trains its own")
        return [real_llm.study_of(model)]
    if name == "all":
        return list(STUDIES.values())
    if name in APART:
        return [APART[name]]
    if name not in STUDIES:
        known = (*STUDIES, *APART, "all", "list")
        raise UsageError(f"study: expected one of {', '.join(known)}, got {name!r}{nearest_name(name, known)}")
    return [STUDIES[name]]


def describe_plan(name: str, preset: str, n_seeds: int, out: Path, *, model: Path | None = None) -> str:
    """Say how many runs a study, or all of them, needs, and about how long they take.

    Errors: UsageError for an unknown study or preset, or a plan of over MOST_CELLS runs
    """
    studies = chosen_studies(name, model)
    return describe(Plan.of(studies, preset, range(n_seeds), StudyFolder(out).cells), studies, range(n_seeds))


def perform(
    name: str,
    preset: str,
    n_seeds: int,
    out: Path,
    say: Say,
    *,
    page: Path | None = None,
    model: Path | None = None,
) -> list[Verdict]:
    """Run a study, or all of them, on the seeds 0 and up, and write what came out under `out`.

    All studies at five seeds or more also leave `out`/findings.md, and the same page at `page`, where the sections of
    studies apart stay; such a study writes its own section there.
    Errors: UsageError for an unknown study or preset, a missing package, or a page of less than all; else as the runs
            and the disk give them
    """
    studies, folder = chosen_studies(name, model), StudyFolder(out)
    check_packages()
    complete = name == "all" and n_seeds >= FEWEST_SEEDS
    if page is not None and not complete and (name not in APART or n_seeds < FEWEST_SEEDS):
        raise UsageError(
            f"--page: expected a run of all studies, or of {', '.join(APART)}, at {FEWEST_SEEDS} seeds or more, got "
            f"{name} at {n_seeds}"
        )
    # read before hours of runs, since it may not be there, and again when it is written
    _page_before(page, name)
    command = command_for(name, preset, n_seeds, model=model)
    found = run_studies(studies, preset, range(n_seeds), folder, say)
    verdicts = judge_all(studies, found, n_studies=1 if name in APART else len(STUDIES))
    for study in studies:
        # its runs are counted by the code that made them
        code = folder.cells.count_by_code([study], preset, range(n_seeds))
        beside = {"preset": preset, "command": command, "code": code}
        write_results(folder.of(study), study, found[study.name], verdicts[study.name], beside=beside)
        if page is not None and name in APART:
            text = section(study, verdicts[study.name], found[study.name], command=command, columns=real_llm.COLUMNS)
            replace_file(page, with_section(_page_before(page, name), text).encode())
    if complete:
        code = folder.cells.count_by_code(studies, preset, range(n_seeds))
        text = findings_page(
            verdicts.values(),
            preset=preset,
            n_seeds=n_seeds,
            n_studies=len(STUDIES),
            code=code,
            measured_by=code_digest(),
        )
        text = with_sections(text, sections_of(_page_before(page, name)))
        for path in (out / "findings.md", page):
            if path is not None:
                replace_file(path, text.encode())
    return list(verdicts.values())


def _page_before(page: Path | None, name: str) -> str:
    """Read what the page of verdicts holds already; "" without one."""
    return read_page(page) if page is not None and (page.exists() or name in APART) else ""
