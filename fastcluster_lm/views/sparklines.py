"""Scores over all steps in the width of a table's cell; it takes rows and gives rows, and prints nothing."""

from collections.abc import Mapping, Sequence

from fastcluster_lm.views.summary import number

Row = Mapping[str, object]

BARS = "▁▂▃▄▅▆▇█"
# a cell has this many characters at most; each then stands for the last probe of its share of them
WIDTH = 24
PLACES = ("position", "split", "space", "group", "labels", "layer")
SPARK_SCORES = ("ari", "knn_share")


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Draw values between 0 and 1 as bars of eight heights, one a value; what is below 0 is as low as 0.

    Shapes: at most `width` characters; a blank where there is no value
    """
    n = min(width, len(values))
    kept = [values[(i + 1) * len(values) // n - 1] for i in range(n)]
    return "".join(" " if value is None else BARS[min(max(int(value * len(BARS)), 0), len(BARS) - 1)] for value in kept)


def sparkline_rows(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Make a row for each place in the score table: bars over steps and the last value of two scores, and their nulls.

    Names:  position (where there are several), split, space, group, labels, layer, probes; ari_steps, ari, null_ari
            and so on, these two at the end
    """
    by_place: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        by_place.setdefault(tuple(row.get(name) for name in PLACES), []).append(row)
    # the first of a place is its position
    several = len({place[0] for place in by_place}) > 1
    drawn = []
    for place, own in by_place.items():
        named = dict(zip(PLACES, place, strict=True)) if several else dict(zip(PLACES[1:], place[1:], strict=True))
        found: dict[str, object] = {**named, "probes": len(own)}
        for name in SPARK_SCORES:
            values = [number(row, name) for row in own]
            found[f"{name}_steps"] = sparkline(values)
            found[name] = values[-1]
            found[f"null_{name}"] = number(own[-1], f"null_{name}")
        drawn.append(found)
    return drawn
