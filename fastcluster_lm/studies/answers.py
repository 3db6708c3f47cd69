"""What a language model answers to prompts, with the states from which it does; it scores nothing."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fastcluster_lm.engine.language_model import LanguageModel
from fastcluster_lm.errors import DataError
from fastcluster_lm.probe.sources.prompts import Layers, PromptReader
from fastcluster_lm.tasks import Prompt

# prompts run at once; tokens of an answer, which zero-shot comes at the end of a sentence
BATCH, ANSWER_TOKENS = 40, 16


class Asked(NamedTuple):
    """What came of n prompts.

    states:     (n_layers, n, D) of Layers.HEAD at the last token of each prompt, which is where an answer begins
    words:      (n, D) the mean embedding of the question's tokens, which knows neither their order nor their sense
    answers:    what the model says, greedily
    first_hits: whether the right answer's first token is the likeliest to come
    """

    states: Float[Tensor, "layers n D"]
    words: Float[Tensor, "n D"]
    answers: list[str]
    first_hits: list[bool]


def ask(language: LanguageModel, prompts: Sequence[Prompt]) -> Asked:
    """Ask all prompts, and keep states, answers and what stands beside them.

    Shapes: n prompts -> as Asked says
    Errors: DataError for a model whose output head has no weights in its folder
    """
    if language.headless:
        raise DataError(
            f"{language.folder}: expected all weights, found none for {language.headless[0]}; answers of weights drawn "
            "at random would say nothing"
        )
    # prompts of like length together, since the shorter ones are padded
    encoded = [language.encode(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda at: len(encoded[at]))
    reader, embeddings = PromptReader(language.model, Layers.HEAD), language.model.get_input_embeddings()
    parts, answers, hits = [], [""] * len(prompts), [False] * len(prompts)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            states, tokens = _generate(language, reader, [encoded[at] for at in some])
            parts.append(states)
            for at, said in zip(some, tokens.tolist(), strict=True):
                answers[at] = language.tokenizer.decode(said, skip_special_tokens=True)
                whole = language.encode(prompts[at], prompts[at].answer)
                hits[at] = said[:1] == whole[len(encoded[at]) :][:1]
        questions = [torch.tensor(language.tokens(prompt.question, special=False)) for prompt in prompts]
        words = torch.stack([embeddings(tokens).mean(0) for tokens in questions])
    back = torch.tensor(order).argsort()
    return Asked(torch.cat(parts, 1)[:, back].clone(), words.clone(), answers, hits)


def _generate(language: LanguageModel, reader: PromptReader, encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Run a batch and go on from it greedily; give states at the last token of each prompt, and the tokens to come."""
    width = max(len(one) for one in encoded)
    # padded on the left, so that all prompts end in one place, where their answers begin; what pads is masked
    tokens = torch.tensor([[0] * (width - len(one)) + one for one in encoded])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in encoded])
    end = language.model.generation_config.eos_token_id
    # the first forward is that of the whole prompt
    with reader.reading(torch.full((len(encoded),), width - 1)) as states:
        said = language.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            num_beams=1,
            pad_token_id=end[0] if isinstance(end, list) else end or 0,
        )
    return torch.stack(states), said[:, width:]


def names(said: str, answer: str) -> bool:
    """Say whether an answer stands in what was said, as whole words, whatever the case."""
    begin = r"\b" if answer[0].isalnum() else ""
    return re.search(rf"{begin}{re.escape(answer)}(?!\w)", said, flags=re.IGNORECASE) is not None
