"""What the files of cells and of measurements must hold, as types that are checked on reading; it reads none."""

from typing import Annotated, Any, Required, TypedDict

from msgspec import Meta

from fastcluster_lm.store.schemas import Finite, Layer, Whole

Score = Finite | None
# what a system takes for the name of a file
Name = Annotated[str, Meta(pattern=r"^[^\x00]+\Z")]


class CellRecord(TypedDict, total=False):
    """cell.json, which makes a cell a finished one; one of an older version lists no files."""

    seconds: Required[Finite]
    cost: Finite
    code: str
    files: dict[Name, Whole]


class Found(TypedDict, total=False):
    """What a study found at a seed."""

    cells: Required[str]
    statistic: Required[Score]
    control: Required[Score]
    rows: Required[list[dict[str, Any]]]
    beside: dict[str, Score]
    note: str


class LayerRow(TypedDict, total=False):
    layer: Required[Layer]
    ari: Required[Score]
    null_ari: Score
    knn_share: Score
    null_knn_share: Score


class PlaceRow(LayerRow, total=False):
    place: Required[str]


class LabelRow(LayerRow, total=False):
    labels: Required[str]


class Places(TypedDict):
    """places.json of multi-token."""

    rows: list[PlaceRow]
    val_accuracy: Finite


class Labels(TypedDict):
    """labels.json of conditions."""

    rows: list[LabelRow]
    val_accuracy: Finite


class Scored(TypedDict):
    """scored.json of vocabulary."""

    rows: list[LayerRow]
    val_accuracy: Finite
    vocab_size: Whole


class Added(TypedDict):
    """added.json of regulariser: a loss a step."""

    added: list[Finite]


# curves.json of identity-pretraining: accuracies by step, of each phase
Curves = dict[str, dict[str, Finite]]
# few.json of unseen-tasks: accuracies by number of instructions shown, and that of pre-training
Few = dict[str, Finite]


class AskedRow(TypedDict, total=False):
    layer: Required[Layer]
    share: Required[Finite]
    null_share: Required[Finite]
    share_shown: Required[Finite]
    share_centred: Required[Finite]
    null_share_centred: Required[Finite]
    share_any: Required[Score]
    null_share_any: Required[Score]
    ari_task: Required[Score]
    null_ari_task: Required[Score]
    ari_wording: Required[Score]
    ari_country: Required[Score]
    ari_task_in_country: Required[Score]


class Asked(TypedDict, total=False):
    """asked.json of real-llm."""

    rows: Required[Annotated[list[AskedRow], Meta(min_length=1)]]
    words: Required[Finite]
    first_token: Required[Finite]
    named: Required[Finite]
