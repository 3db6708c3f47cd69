"""A language model of transformers with random weights and a tokenizer of whole words, written to a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny_questions import QUESTIONS

__all__ = ["QUESTIONS", "write_model", "write_tokenizer"]
CHAT = (
    "{% for message in messages %}user : {{ message['content'] }} ."
    "{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)
INPUTS = ("france", "japan", "spain", "italy", "peru", "chad")
WORDS = (
    *("<unk>", "<s>", "user", "assistant", ":", ".", "?", "what", "is", "the", "capital", "currency", "of", "which"),
    *("city", "money", "name", "pay", "ruled", "from", "in", "with", *INPUTS),
)
N_BLOCKS, WIDTH, MOST_TOKENS = 3, 16, 64


def write_tokenizer(folder: Path, *, chat: bool = False) -> None:
    """Write a tokenizer that knows WORDS, and all else as unknown."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
    if chat:
        fast.chat_template = CHAT
    fast.save_pretrained(folder)


def write_model(folder: Path, *, chat: bool = False) -> Path:
    """Write a Llama of three blocks, as safetensors, and its tokenizer."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=MOST_TOKENS,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, chat=chat)
    return folder
