"""Listings and the closing table as a reader sees them."""

import csv
import io
import json

import pytest

from fastcluster_lm.errors import UsageError
from fastcluster_lm.views import print_closing, print_rows

ROWS = [
    {"name": "[abc]{6}", "ari": 0.123456789, "step": 5, "warm": True, "kl": None, "long": "x" * 150},
    {"name": 'with "comma", too', "ari": None, "step": 10, "warm": False, "kl": None, "long": "y"},
]
COLUMNS = ["step", "name", "ari", "warm", "kl", "long"]


def printed(format, rows=ROWS):
    stream = io.StringIO()
    print_rows(rows, COLUMNS, format=format, stream=stream)
    return stream.getvalue()


def test_json_and_csv_hold_every_column_and_digit():
    found = json.loads(printed("json"))
    assert found == [{name: row[name] for name in COLUMNS} for row in ROWS]
    assert list(found[0]) == COLUMNS
    assert list(csv.reader(io.StringIO(printed("csv")))) == [
        COLUMNS,
        ["5", "[abc]{6}", "0.123456789", "true", "", "x" * 150],
        ["10", 'with "comma", too', "", "false", "", "y"],
    ]
    assert json.loads(printed("json", [])) == [] and printed("csv", []) == ",".join(COLUMNS) + "\n"


def test_table_in_a_pipe_is_not_cut_and_has_no_markup_or_empty_column():
    lines = [line.rstrip() for line in printed("table").splitlines()]
    assert lines[0].split() == ["step", "name", "ari", "warm", "long"]
    assert lines[2].split() == ["5", "[abc]{6}", "0.123", "yes", "x" * 150]
    assert lines[3].split()[-3:] == ["-", "no", "y"]
    assert len(lines) == 4
    assert printed("table", []).split("\n")[0].split() == COLUMNS


def test_unknown_format_names_the_nearest():
    with pytest.raises(UsageError, match="'jsn'; did you mean 'json'"):
        printed("jsn")


STEPS = (0, 50, 700, 1400)
LAST = STEPS[-1]


def run_rows(layers=7):
    """Make rows whose score can be told from where it stands: 0.<layer><moment>."""
    scores = []
    for moment, step in enumerate(STEPS):
        for layer in range(layers):
            for split in ("train", "val"):
                for group in ("all", "input_output"):
                    ari = layer / 10 + moment / 100 + (0.2 if group == "all" else 0)
                    scores.append(
                        {"step": step, "layer": layer, "split": split, "space": "hidden", "group": group}
                        | {"labels": "task", "ari": ari, "ami": 0.77, "f1": 0.78, "knn_share": ari + 0.003}
                        | {"knn_share_across": 0.55, "null_ari": 0.91, "null_knn_share": 0.92}
                        | {"null_knn_share_across": 0.93, "ceiling_output": 0.32}
                    )
    steps = [{"step": step, "val_accuracy": 0.2 + index / 5} for index, step in enumerate(STEPS)]
    return scores, steps


SUMMARY = {
    "steps": LAST, "early_stopping_step": 900, "val_accuracy": 0.994, "probes": 4,
    "probe_seconds": 31.24, "probe_share": 0.181, "wall_seconds": 172.6,
}  # fmt: skip


def closing(width=100, summary=SUMMARY, rows=None, **options):
    stream = io.StringIO()
    scores, steps = run_rows() if rows is None else rows
    options = {"space": "hidden", "group": "input_output", "layer": 4} | options
    print_closing(scores, steps, summary, stream=stream, width=width, **options)
    return stream.getvalue()


def test_closing_has_each_layer_at_each_moment():
    lines = [line.split() for line in closing().splitlines()]
    headers = [line for line in lines if line[:3] == ["layer", "step", "0"]]
    assert [header[3:5] for header in headers] == [["700", "1400"]] * 2
    agreement = [line for line in lines if len(line) == 10 and line[0] == "4"]
    #                       step 0, mark,   end, settled, null, output,  AMI,    F1,  all points
    assert agreement == [["4", "0.40", "0.42", "0.43", "50", "0.91", "0.32", "0.77", "0.78", "0.63"]]
    neighbors = [line for line in lines if len(line) == 9 and line[0] == "4"]
    assert neighbors == [["4", "0.40", "0.42", "0.43", "50", "0.92", "0.55", "0.93", "0.63"]]
    assert sum(line[:1] == ["0"] for line in lines) == 2 and sum(line[:1] == ["6"] for line in lines) == 2


def test_closing_is_of_the_first_token_and_has_a_headline_of_each():
    scores, steps = run_rows()
    low = {name: 0.125 for name in ("ari", "null_ari", "knn_share")}
    both = [{**row, "position": "instruction"} for row in scores] + [
        {**row, **low, "position": "input"} for row in scores
    ]
    text = closing(rows=(both, steps), positions=("instruction", "input"))
    alone = closing(rows=(scores, steps), positions=("instruction",))
    lines = text.splitlines()
    assert lines[0] == "Token: instruction" and lines[1:8] == alone.splitlines()[:7]
    words = " ".join(text.split())
    assert "Layer 4: task ARI 0.43 (step 0 0.40" in words and "YES -0.48 yes if task ARI" in words
    assert "Layer 4, input token: task ARI 0.12 (step 0 0.12, null 0.12" in words


def test_closing_says_the_headline_the_signs_and_the_cost():
    text = " ".join(closing().split())
    assert (
        "Layer 4: task ARI 0.43 (step 0 0.40, null 0.91, by output alone 0.32), KNN share 0.43 (null 0.92); "
        "over all points ARI 0.63, KNN share 0.63." in text
    )
    assert "Validation accuracy 0.994 after 1400 steps; early-stopping mark at step 900 (0.600)." in text
    assert "scores do not rise YES -0.48 yes if task ARI at the end" in text
    assert "KNN does not go with accuracy no 1.00 yes if Spearman" in text
    assert "clusters on train only no 0.00 yes if" in text
    assert "4 probes took 31.2 s, 18.1% of the run's time (172.6 s)." in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_closing_fits_its_width_and_loses_no_figure(width):
    text = closing(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.replace("─", "").split() == closing(300).replace("─", "").split()


def test_closing_leaves_out_what_is_not_there():
    text = closing(summary={})
    assert "mark" not in text and "Validation accuracy" not in text and "probes took" not in text
    assert "all points" not in closing(group="all").replace("over all points", "")
    assert "Layer 9, which the headline names, was not scored." in closing(layer=9)
    assert closing(summary={}, rows=([], [])).strip() == (
        "No scores of the hidden states among points of one input and one output: nothing was probed."
    )


def test_closing_of_step_0_alone_decides_nothing_that_needs_time():
    scores, steps = run_rows()
    text = closing(rows=([row for row in scores if row["step"] == 0], steps[:1]))
    assert text.count("undecided") == 2 and "settled" not in text
