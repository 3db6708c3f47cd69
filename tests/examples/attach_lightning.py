"""Attach the probe to a Lightning Trainer: a small network learns three lookup tables."""

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastcluster_lm import ClusterProbe, FclmLightningCallback

# a word (0 to 5, two a task), an input (6 to 13), and the output that the word's task gives to it
word, x = (part.flatten() for part in torch.meshgrid(torch.arange(6), torch.arange(8), indexing="ij"))
task = word // 2
output = (x * (task + 1) + task) % 4
tokens = torch.stack([word, x + 6], 1)  # (48, 2)


class Lookup(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(14, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.1)) for _ in range(2))
        self.head = nn.Linear(32, 4)

    def forward(self, tokens):
        h = self.embedding(tokens).flatten(1)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)

    def training_step(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


labels = {"task": task, "distribution": word, "input": x, "output": output}
callback = FclmLightningCallback(
    lambda model: ClusterProbe(model, tokens, labels, layers="blocks.*", every=20, out="run")
)
trainer = lightning.Trainer(
    max_steps=40, accelerator="cpu", logger=CSVLogger("."), callbacks=[callback], enable_progress_bar=False
)
trainer.fit(Lookup(), DataLoader(TensorDataset(tokens, output), batch_size=48, shuffle=True))
