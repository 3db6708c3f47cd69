"""Lays out Markdown: tables, numbers of three digits, paragraphs; it knows no benchmark."""

from textwrap import fill


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(value: float) -> str:
    """Give three digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.9f}".rstrip("0").rstrip(".")


def percent(value: float) -> str:
    """Give a share with its sign."""
    return f"{short(value * 100)} %"


def milliseconds(seconds: float) -> str:
    """Give seconds as milliseconds, with their unit."""
    return f"{short(seconds * 1e3)} ms"


def wrapped(block: str) -> str:
    """Break a paragraph or the items of a list into lines of 120; tables and titles stay."""
    if block.startswith(("|", "#")):
        return block
    if not block.startswith("- "):
        return fill(" ".join(block.split()), 120, break_long_words=False, break_on_hyphens=False)
    items = (" ".join(item.split()) for item in block[2:].split("\n- "))
    return "\n".join(
        fill(item, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False) for item in items
    )
