"""Attach the probe to a Hugging Face Trainer: a small GPT-2 learns three lookup tables."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from fastcluster_lm import ClusterProbe, FclmTrainerCallback

# a word (0 to 5, two a task), an input (6 to 13), the output that the word's task gives to it (14 to 17)
word, x = (part.flatten() for part in torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij"))
task = word // 2
output = (x * (task + 1) + task) % 4
tokens = torch.stack([word, x + 6, output + 14], 1)  # (48, 3)

torch.manual_seed(0)
config = GPT2Config(vocab_size=18, n_positions=3, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
model = GPT2LMHeadModel(config)
arguments = TrainingArguments("trained", max_steps=40, per_device_train_batch_size=48, learning_rate=3e-3, use_cpu=True)
labels = {"task": task, "distribution": word, "input": x, "output": output}
inputs = {"input_ids": tokens[:, :2]}  # read at the last of these, the input
layers = ["transformer.wte", "transformer.h.*"]
callback = FclmTrainerCallback(
    lambda model: ClusterProbe(model, inputs, labels, layers=layers, every=20, out="run", resume=True)
)
data = [{"input_ids": row, "labels": row} for row in tokens]
trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
trainer.train()
