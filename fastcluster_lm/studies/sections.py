"""The sections that studies which stand apart have on the page of findings: written, replaced, and kept by `all`."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastcluster_lm.errors import UsageError
from fastcluster_lm.store.files import explaining, fitting
from fastcluster_lm.studies.page import markdown_table, number_text, verdict_table, what_was_compared, with_interval
from fastcluster_lm.studies.reading import mean
from fastcluster_lm.studies.study import Measured, Study, Verdict
from fastcluster_lm.untrusted import MIB, read_regular

MOST_PAGE = 16 * MIB
_HEADING = re.compile(r"^## (?P<name>\S+), apart from all\n", re.MULTILINE)


def section(
    study: Study, verdict: Verdict, found: Mapping[int, Measured], *, command: str, columns: Mapping[str, str]
) -> str:
    """Write the section of one study: its verdict, what stood beside it, and a table by layer, a mean over the seeds.

    columns: names of figures in the study's rows, and their titles
    """
    lines = [
        f"## {study.name}, apart from all",
        "",
        f"Written by `{command}`; figures as they came out. It needs what `all` does without, so its",
        "p stands alone: it is uncorrected, and the correction of the studies above does not count it.",
        "",
        *verdict_table([(verdict, command)], alone=True),
        "",
        *what_was_compared(verdict),
        "",
        *(
            f"- {name}: {with_interval(entry['mean'], entry['low'], entry['high'])}"
            for name, entry in verdict.beside.items()
        ),
        "",
        f"Rule: {study.rule}.",
        "",
        *_by_layer(study, found, columns),
    ]
    return "\n".join(lines) + "\n"


def with_section(page: str, text: str) -> str:
    """Put a section on a page, in the place of the one that it had, or at the end."""
    named = _HEADING.match(text)
    assert named is not None, "a section begins with its heading"
    return with_sections(_without_sections(page), [*_others(page, named["name"]), text])


def with_sections(page: str, texts: Iterable[str]) -> str:
    """Put sections at the end of a page."""
    return "\n".join([page, *texts])


def sections_of(page: str) -> list[str]:
    """List the sections of a page, as they are."""
    starts = [found.start() for found in _HEADING.finditer(page)]
    return [page[start:end].rstrip() + "\n" for start, end in zip(starts, [*starts[1:], len(page)], strict=False)]


def read_page(path: Path) -> str:
    """Read a page of findings.

    Errors: UsageError where there is none
    """
    if not os.path.lexists(path):
        raise UsageError(f"{path}: expected the page of findings, found none; `fclm study all --page {path}` writes it")
    with explaining("read", path), fitting(path):
        return read_regular(path, most_bytes=MOST_PAGE).decode()


def _without_sections(page: str) -> str:
    first = _HEADING.search(page)
    return (page if first is None else page[: first.start()]).rstrip() + "\n"


def _others(page: str, name: str) -> list[str]:
    return [text for text in sections_of(page) if not text.startswith(f"## {name},")]


def _by_layer(study: Study, found: Mapping[int, Measured], columns: Mapping[str, str]) -> list[str]:
    rows = [row for one in found.values() for row in one.rows]
    x, by = study.figure.x, study.figure.by
    kinds = list(dict.fromkeys(row[by] for row in rows))
    titles = [f"{kind}: {title}" for kind in kinds for title in columns.values()]
    lines = []
    for place in sorted({row[x] for row in rows}):
        here = [[row for row in rows if row[x] == place and row[by] == kind] for kind in kinds]
        cells = [number_text(mean(row[column] for row in some)) for some in here for column in columns]
        lines.append([str(place), *cells])
    return markdown_table([x, *titles], lines)
