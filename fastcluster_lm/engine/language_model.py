"""A causal language model that others trained: writes prompts in its tokens; it reads no folder and no states."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastcluster_lm.engine.chat_template import ChatTemplate
from fastcluster_lm.errors import FclmError, UsageError
from fastcluster_lm.tasks import Prompt


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model of transformers in evaluation mode, in fp32, and its tokenizer.

    folder:   where it was found, for errors
    chat:     whether prompts are turns of a chat, or plain text
    headless: weights of the output head that the folder lacks: states are the model's, answers would be random
    """

    model: Any
    tokenizer: Any
    folder: Path
    chat: bool
    headless: tuple[str, ...] = ()

    def encode(self, prompt: Prompt, answer: str = "") -> list[int]:
        """Write a prompt, up to where its answer begins, and what is answered.

        Errors: UsageError for words without a token, for tokens without an embedding, or as ChatTemplate.render
        """
        if self.chat:
            turns = []
            for question, reply in prompt.examples:
                turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            text = self._template.render([*turns, {"role": "user", "content": prompt.question}]) + answer
        else:
            shown = "".join(f"{question}{prompt.cue} {reply}\n\n" for question, reply in prompt.examples)
            text = f"{shown}{prompt.question}{prompt.cue}{' ' * bool(answer)}{answer}"
            self._check_words(text)
        # a template writes what begins a text itself
        return self.tokens(text, special=not self.chat)

    def tokens(self, text: str, *, special: bool) -> list[int]:
        """Give the tokens of a text, with those that begin one if `special`.

        Errors: UsageError for tokens without an embedding
        """
        with told(self.folder):
            tokens = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if wrong := [token for token in tokens if not 0 <= token < self._n_embeddings]:
            raise UsageError(
                f"{self.folder}: expected tokens from 0 to {self._n_embeddings - 1}, as the model has embeddings, its "
                f"tokenizer gave {wrong[0]}; one of them is another model's"
            )
        return tokens

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, str(self.folder))

    @cached_property
    def _n_embeddings(self) -> int:
        return len(self.model.get_input_embeddings().weight)

    @cached_property
    def _closed_vocabulary(self) -> Mapping[str, int] | None:
        """Give the words of a tokenizer that has no token for any other, as that of an exported run; None for others.

        The tokenizers library raises a bare Exception at an unknown word, which could not be told from any other
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or type(backend.model).__name__ != "WordLevel" or backend.pre_tokenizer is None:
            return None
        words: Mapping[str, int] = backend.get_vocab()
        return None if backend.model.unk_token in words else words

    def _check_words(self, text: str) -> None:
        if (words := self._closed_vocabulary) is None:
            return
        pieces = self.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        if new := [piece for piece, _ in pieces if piece not in words]:
            raise UsageError(
                f"--tasks: expected words that the model's tokenizer knows, got {new[0]!r}; it has no token for "
                "unknown ones"
            )


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Turn whatever transformers and its libraries raise for files that do not fit into one line about the folder.

    Errors: UsageError
    """
    try:
        yield
    except FclmError:
        raise
    # their files lead them to raise anything, the tokenizers library even a bare Exception; its panics are none
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{error}".strip().partition("\n")[0]
        raise UsageError(f"{folder}: transformers cannot load it: {type(error).__name__}: {reason}") from error
