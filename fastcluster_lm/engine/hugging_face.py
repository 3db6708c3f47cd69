"""Load a language model of transformers from a folder: safetensors and no code of its own, nothing fetched unasked."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastcluster_lm.engine.language_model import LanguageModel, told
from fastcluster_lm.engine.model_folder import check_model_folder, n_values
from fastcluster_lm.errors import DataError, UsageError, nearest_name

# endings of files that are pickles, and run whatever is in them when they are read
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# what is fetched of a repository: no pickle, no code
FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
# nothing is fetched, and no code of the folder is run
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
TOKENIZER_FILES = ("tokenizer*", "vocab*", "spiece.model", "sentencepiece*", "*.tiktoken")


def find_folder(name: str, *, download: bool = False) -> tuple[Path, bool]:
    """Find what is to be scored, and say whether it is a run's folder; nothing is fetched without `download`.

    Errors: UsageError for what is no folder, or a pickle, naming the alternative
    """
    path = Path(name)
    if path.suffix in PICKLES and not path.is_dir():
        raise UsageError(
            f"{path}: expected a folder with weights as safetensors, got a pickle, which may run any code when it is "
            f"read, so it is not; where you trust it, write it anew: {_conversion(path.parent)}"
        )
    if path.is_file():
        raise UsageError(f"{path}: expected a run's or a model's folder, got a file; name the folder that it is in")
    if path.is_dir():
        return path, (path / "run.toml").is_file()
    if download:
        return _fetch(name), False
    near = ""
    if path.parent.is_dir():
        near = nearest_name(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_dir()])
    raise UsageError(
        f"there is no folder {name}{near or ';'} nothing is fetched from a network unless --download is given"
    )


def _fetch(name: str) -> Path:
    """Fetch a model by its name on the Hugging Face hub, or take what was fetched before; no pickle and no code.

    Errors: UsageError without transformers, or where there is no such model
    """
    _require_transformers()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"--download: {name} could not be fetched: {_first_line(error)}") from error


def load_model(
    folder: Path,
    device: torch.device,
    *,
    chat: bool | None = None,
    weights: str | None = None,
) -> LanguageModel:
    """Load weights (as float32) and tokenizer from a folder; nothing is fetched, and no code in the folder is run.

    chat:    prompts go through the tokenizer's chat template; None: where it has one
    weights: a file of GGUF in the folder; None: safetensors
    Errors:  UsageError as load_tokenizer, for a folder that describes another model than its weights are of, or that
             transformers cannot load, or for `chat` without a template;
             DataError where weights are missing that the states need
    """
    shapes = _checked(folder, weights)
    tokenizer = _tokenizer(folder, weights)
    if chat and not has_template(tokenizer):
        raise UsageError(f"--chat: {folder} has a tokenizer without a chat template; leave the option out")
    model, missing = _weights(folder, shapes, weights)
    body = f"{model.base_model_prefix}."
    if absent := [name for name in missing if name.startswith(body)]:
        raise DataError(
            f"{folder}: expected all weights of {type(model).__name__}, found none for {absent[0]} and "
            f"{len(absent) - 1} more; scores of weights drawn at random would say nothing"
        )
    chat = has_template(tokenizer) if chat is None else chat
    return LanguageModel(model.to(device).eval(), tokenizer, folder, chat, tuple(missing))


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a folder with a model in safetensors.

    Errors: UsageError for a folder with pickles alone, without weights or tokenizer, that leads out of itself, or whose
            tokenizer transformers cannot load
    """
    _checked(folder, None)
    return _tokenizer(folder, None)


def has_template(tokenizer: Any) -> bool:
    """Say whether a tokenizer can write a chat."""
    return bool(getattr(tokenizer, "chat_template", None))


def _checked(folder: Path, weights: str | None) -> dict[str, tuple[int, ...]]:
    """Judge a folder before any library reads it; give the shape of every tensor in safetensors, by name."""
    if weights is None:
        _check_files(folder)
        shapes = check_model_folder(folder)
    elif (folder / weights).is_file():
        shapes = {}
    else:
        raise UsageError(f"{folder}: expected weights as {weights}, found none")
    _require_transformers()
    return shapes


def _tokenizer(folder: Path, weights: str | None) -> Any:
    from transformers import AutoTokenizer

    with _quiet(), told(folder):
        return AutoTokenizer.from_pretrained(folder, gguf_file=weights, **LOCAL)


def _weights(folder: Path, shapes: Mapping[str, tuple[int, ...]], weights: str | None) -> tuple[Any, list[str]]:
    """Load a model, as float32 on the CPU, and list the weights that it has and the folder has not."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # their own annotation leaves out the report that comes beside the model
    models: Any = AutoModelForCausalLM
    how = {"dtype": torch.float32, "output_loading_info": True, **LOCAL}
    with _quiet(), told(folder):
        if weights is None:
            _check_size(folder, AutoConfig.from_pretrained(folder, **LOCAL), shapes)
            model, found = models.from_pretrained(folder, use_safetensors=True, **how)
        else:
            model, found = models.from_pretrained(folder, gguf_file=weights, **how)
    return model, sorted(found["missing_keys"])


def _check_size(folder: Path, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Build the model without memory, and refuse one that is far larger than its weights, or than the machine.

    Errors: UsageError
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    needed = sum(one.numel() for one in (*model.parameters(), *model.buffers()))
    held = n_values(shapes)
    # packed weights hold 8 values in one; buffers of positions are in no file
    if needed > 8 * held + 2**24:
        raise UsageError(f"{folder}: config.json describes {needed:,} weights, but there are {held:,}")
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * needed > room:
        raise UsageError(
            f"{folder}: expected a model that this machine has room for, got one of {4 * needed / 2**30:.0f} GiB as "
            f"float32, where it has {room / 2**30:.0f}"
        )


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} has no config.json, so it is no model's folder, and no run.toml, so it is no run")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
        if pickles:
            raise UsageError(
                f"{folder}: expected weights as safetensors, found {pickles[0]}, a pickle, which may run any code when "
                f"it is read, so it is not; where you trust it, write it anew: {_conversion(folder)}"
            )
        raise UsageError(f"{folder}: expected weights as *.safetensors beside config.json, found none")
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise UsageError(
            f"{folder}: expected a tokenizer beside the weights (tokenizer.json, say), found none; "
            f"write one there with AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})"
        )


def _conversion(folder: Path) -> str:
    return (
        'python -c "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
        f"[a.from_pretrained({str(folder)!r}).save_pretrained('SAFE') for a in (M, T)]\", then name SAFE"
    )


def _require_transformers() -> None:
    if importlib.util.find_spec("transformers") is None:
        raise UsageError("a model of transformers needs that package; pip install 'fastcluster-lm[hf]'")


def _first_line(error: BaseException) -> str:
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings off the terminal for the body; what matters of them is an error here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
