"""Hand a run to other programs: its model as transformers loads it, its tables as Parquet; nothing is pickled."""

import importlib.util
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastcluster_lm.data import Vocabulary
from fastcluster_lm.data.vocabulary import PAD
from fastcluster_lm.engine import stored_config
from fastcluster_lm.engine.checkpoint import check_model, newest_checkpoint, read_weights
from fastcluster_lm.errors import DataError, UsageError
from fastcluster_lm.model import GPT2, hugging_face_state
from fastcluster_lm.store import SCORE_COLUMNS, STEP_COLUMNS, RunFolder
from fastcluster_lm.store.arrays import encode_arrays
from fastcluster_lm.store.files import new_folder, write_new_file
from fastcluster_lm.tasks import taskset_from_dict

# columns that hold no fractions; all others do
_WHOLE = {"step", "layer", "n_points", "n_clusters"}
_TEXT = {"split", "space", "group", "labels", "tier", "source", "engine", "null_kind", "position", "skipped"}


def export_hugging_face(run: str | Path, out: str | Path, *, step: int | None = None) -> Path:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load: the weights of a checkpoint, and the tokens.

    Notes:  the tokenizer takes tokens with blanks between them: letters of an instruction, input, output
    Errors: RunExistsError if the folder exists; RunFolderError without a checkpoint; ConfigError for a run of an
            attached probe; DataError for a token with a blank in it
    """
    folder = RunFolder.open(run)
    stored = folder.config()
    config = stored_config(stored, str(run))
    step = newest_checkpoint(folder, "export") if step is None else step
    taskset = taskset_from_dict(stored["taskset"])
    vocabulary = Vocabulary.of(taskset)
    check_model(folder, step, config, taskset)
    weights = read_weights(folder, step)
    n_positions = len(weights["wpe.weight"])
    model = GPT2(config.model, len(vocabulary), n_positions, torch.Generator().manual_seed(0))
    model.load_state_dict(weights)
    state = {name: tensor.detach().numpy() for name, tensor in hugging_face_state(model).items()}
    # transformers ties it to the embedding, and stores it once
    del state["lm_head.weight"]
    described = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": len(vocabulary),
        "n_positions": n_positions,
        "n_embd": config.model.d_model,
        "n_layer": config.model.n_layers,
        "n_head": config.model.n_heads,
        "n_inner": config.model.d_mlp or None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": model.ln_f.eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.model.dropout),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": vocabulary.tokens.index(PAD),
        "dtype": "float32",
    }
    return _publish(
        out,
        {
            "config.json": _json(described),
            "model.safetensors": encode_arrays(state, {"format": "pt"}),
            "tokenizer.json": _json(_tokenizer(vocabulary)),
            "tokenizer_config.json": _json(
                {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD, "model_max_length": n_positions}
            ),
        },
    )


def export_parquet(run: str | Path, out: str | Path) -> Path:
    """Write scores.parquet and steps.parquet, a column for each column of the run's tables.

    Errors: RunExistsError if the folder exists; UsageError if pyarrow is not installed
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError("--to parquet needs pyarrow; pip install 'fastcluster-lm[parquet]'")
    folder = RunFolder.open(run)
    tables = {"scores": (folder.scores(), SCORE_COLUMNS), "steps": (folder.steps(), STEP_COLUMNS)}
    return _publish(out, {f"{name}.parquet": _parquet(rows, columns) for name, (rows, columns) in tables.items()})


def _parquet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {**dict.fromkeys(_WHOLE, pa.int64()), **dict.fromkeys(_TEXT, pa.string()), "warm": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in columns])
    # a whole number in a column of others may be larger than Arrow takes as such
    plain = [
        {name: float(value) if type(value) is int and name not in kinds else value for name, value in row.items()}
        for row in rows
    ]
    target = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(plain, schema), target)
    return target.getvalue()


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """Describe a tokenizer of whole words in the format of the tokenizers library; an unknown word is an error."""
    if broken := [token for token in vocabulary.tokens if token.split() != [token]]:
        raise DataError(f"token {broken[0]!r} has a blank in it; transformers' tokenizer takes words between blanks")
    pad = vocabulary.tokens.index(PAD)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": pad, "content": PAD, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            # not among the words: what is not known there is refused
            "unk_token": "<unk>",
        },
    }


def _publish(out: str | Path, files: Mapping[str, bytes]) -> Path:
    """Write a new folder that appears whole, or not at all."""
    out = Path(out)
    with new_folder(out, "write") as aside:
        for name, data in files.items():
            write_new_file(aside / name, data)
    return out


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
