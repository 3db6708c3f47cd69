"""One line about each run, for a listing; it opens run folders and draws nothing."""

from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.store import RunFolder
from fastcluster_lm.views.positions import positions_of, rows_at

RUN_COLUMNS = (
    "run",
    "preset",
    "seed",
    "status",
    "step",
    "steps",
    "val_accuracy",
    "layer",
    "ari",
    "knn_share",
    "problem",
)


def run_overview(folder: RunFolder) -> dict[str, object]:
    """Say what a run is, how far it came and where its headline stands, or why it cannot be read.

    So one damaged run hides no other
    """
    try:
        return _overview(folder)
    except RunFolderError as error:
        return {"run": str(folder.path), "status": "damaged", "problem": str(error)}


def _overview(folder: RunFolder) -> dict[str, object]:
    config, steps, scores = folder.config(), folder.steps(), folder.scores()
    report = config["report"]
    layer = config["model"]["n_layers"] if report["layer"] < 0 else report["layer"]
    wanted = {"labels": "task", "split": "val", "space": report["space"], "group": report["group"], "layer": layer}
    at_first = rows_at(scores, positions_of(config)[0])
    headline = [row for row in at_first if all(row[key] == value for key, value in wanted.items())]
    accuracies = [row["val_accuracy"] for row in steps if row["val_accuracy"] is not None]
    return {
        "run": str(folder.path),
        "preset": config.get("name"),
        "seed": config.get("seed"),
        "status": folder.status(),
        "step": steps[-1]["step"] if steps else None,
        # a probe attached to another loop does not know where that ends
        "steps": config.get("training", {}).get("steps"),
        "val_accuracy": accuracies[-1] if accuracies else None,
        "layer": layer,
        "ari": headline[-1]["ari"] if headline else None,
        "knn_share": headline[-1]["knn_share"] if headline else None,
    }
