"""A causal language model that others trained: loads it from a folder, asks it, keeps its states; it scores nothing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.engine import hugging_face
from fastcluster_lm.engine.chat_template import ChatTemplate
from fastcluster_lm.engine.model_folder import check_model_folder
from fastcluster_lm.errors import UsageError
from fastcluster_lm.studies.questions import Prompt

# prompts run at once; tokens of an answer, which zero-shot comes at the end of a sentence
BATCH, ANSWER_TOKENS = 40, 16


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model and its tokeniser, in fp32 on the CPU."""

    model: Any
    tokenizer: Any

    @property
    def chat(self) -> bool:
        """Say whether prompts are turns of a chat, or plain text, as the tokeniser has a template for them or none."""
        return has_template(self.tokenizer)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, str(getattr(self.tokenizer, "name_or_path", "the model")))

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """Write a prompt, up to where its answer begins, and what is answered."""
        if self.chat:
            turns = []
            for question, reply in prompt.examples:
                turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            turns.append({"role": "user", "content": prompt.question})
            text = self._template.render(turns)
            # the template writes the special tokens itself
            return list(self.tokenizer(text + answer, add_special_tokens=False)["input_ids"])
        text = "".join(f"{question}\nAnswer: {reply}\n\n" for question, reply in prompt.examples)
        return list(self.tokenizer(f"{text}{prompt.question}\nAnswer:{' ' * bool(answer)}{answer}")["input_ids"])


class Asked(NamedTuple):
    """What came of n prompts.

    states:     (n_layers, n, D) after every block, the last after the final norm, at the last token of each prompt,
                which is where an answer begins; without the embedding, since all prompts end alike
    words:      (n, D) the mean embedding of the question's tokens, which knows neither their order nor their sense
    answers:    what the model says, greedily
    first_hits: whether the right answer's first token is the likeliest to come
    """

    states: Float[Tensor, "layers n D"]
    words: Float[Tensor, "n D"]
    answers: list[str]
    first_hits: list[bool]


def has_template(tokenizer: Any) -> bool:
    """Say whether a tokeniser can write a chat."""
    return getattr(tokenizer, "chat_template", None) is not None


def load_tokenizer(folder: Path, weights: str | None = None) -> Any:
    """Load the tokeniser of a folder; nothing is fetched.

    Errors: UsageError for a folder without weights that are read: `weights`, of GGUF, or by default safetensors; or
            that leads out of itself, or whose tokeniser cannot be loaded
    """
    if not (folder / weights).is_file() if weights else not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: expected weights as {weights or 'safetensors'}, found none; pickles are not read")
    if weights is None:
        check_model_folder(folder)
        return hugging_face.load_tokenizer(folder)
    # loaded here, since no other study needs it
    from transformers import AutoTokenizer

    with hugging_face.told(folder):
        return AutoTokenizer.from_pretrained(folder, gguf_file=weights, **hugging_face.LOCAL)


def load_model(folder: Path, weights: str | None = None) -> LanguageModel:
    """Load a model and its tokeniser from a folder, in fp32 on the CPU; nothing is fetched, and no code of it is run.

    weights: a file of GGUF in the folder; None: safetensors
    Errors: UsageError for a folder without such weights, or as engine/hugging_face.py's load_parts
    """
    if weights is None:
        model, tokenizer = hugging_face.load_parts(folder)
        return LanguageModel(model.eval(), tokenizer)
    tokenizer = load_tokenizer(folder, weights)
    from transformers import AutoModelForCausalLM

    with hugging_face.told(folder):
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=weights, dtype=torch.float32, **hugging_face.LOCAL
        )
    return LanguageModel(model.eval(), tokenizer)


def ask(language: LanguageModel, prompts: Sequence[Prompt]) -> Asked:
    """Ask all prompts, and keep states, answers and what stands beside them.

    Shapes: n prompts -> as Asked says
    """
    # prompts of like length together, since the shorter ones are padded
    encoded = [language.encode(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda at: len(encoded[at]))
    parts, answers, hits = [], [""] * len(prompts), [False] * len(prompts)
    embeddings = language.model.get_input_embeddings()
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            states, tokens = _generate(language, [encoded[at] for at in some])
            parts.append(states)
            for at, said in zip(some, tokens.tolist(), strict=True):
                answers[at] = language.tokenizer.decode(said, skip_special_tokens=True)
                whole = language.encode(prompts[at], prompts[at].answer)
                hits[at] = said[:1] == whole[len(encoded[at]) :][:1]
        words = torch.stack([embeddings(_question_tokens(language, prompt)).mean(0) for prompt in prompts])
    back = torch.tensor(order).argsort()
    return Asked(torch.cat(parts, 1)[:, back].clone(), words.clone(), answers, hits)


def _generate(language: LanguageModel, encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Run a batch and go on from it greedily; give states at the last token of each prompt, and the tokens to come."""
    width = max(len(one) for one in encoded)
    # padded on the left, so that all prompts end in one place; what pads is masked
    tokens = torch.tensor([[0] * (width - len(one)) + one for one in encoded])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in encoded])
    end = language.model.generation_config.eos_token_id
    out = language.model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=end[0] if isinstance(end, list) else end or 0,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    # the first of the steps is that of the whole prompt
    at_end = torch.stack([layer[:, -1] for layer in out.hidden_states[0][1:]])
    return at_end, out.sequences[:, width:]


def _question_tokens(language: LanguageModel, prompt: Prompt) -> Tensor:
    return torch.tensor(language.tokenizer(prompt.question, add_special_tokens=False)["input_ids"])


def names(said: str, answer: str) -> bool:
    """Say whether an answer stands in what was said, as whole words, whatever the case."""
    begin = r"\b" if answer[0].isalnum() else ""
    return re.search(rf"{begin}{re.escape(answer)}(?!\w)", said, flags=re.IGNORECASE) is not None
