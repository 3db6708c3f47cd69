"""Are task clusters a bias of the Transformer? Other architectures learn the same tasks at a similar size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fastcluster_lm.config import ModelConfig, RunConfig
from fastcluster_lm.engine import Rooms, start_run
from fastcluster_lm.errors import RunFolderError
from fastcluster_lm.model import ModelOutput, TrainableModel
from fastcluster_lm.studies.reading import accuracies, mean, open_run, over_layers, task_rows
from fastcluster_lm.studies.study import BASE, Arm, Lines, Measured, Options, Study
from fastcluster_lm.tasks import taskset_of

TRANSFORMERS, OTHERS = ("gpt2", "bert", "t5"), ("lstm", "mamba")
# validation accuracy below which an architecture has not learnt the tasks, and is not compared
LEARNT = 0.9


class Wrapped(TrainableModel):
    """Another architecture with GPT-2's arguments and output; a head of its own over the last states.

    Shapes: tokens (B, T) -> logits (B, V), states (B, n_layers + 1, D) at the probed position; of several
            those of the first, then those of the next
    """

    def __init__(self, kind: str, config: ModelConfig, vocab_size: int, n_positions: int) -> None:
        super().__init__()
        self.config, self.kind = config, kind
        self.body = _body(kind, config, vocab_size, n_positions)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        output_position: Int[Tensor, " B"],
        probe_positions: Int[Tensor, "B P"] | None = None,
        all_tokens: bool = False,
    ) -> ModelOutput:
        """Predict the output; encoders read all tokens at once, T5's decoder answers from its start token."""
        probed = output_position[:, None] if probe_positions is None else probe_positions
        hidden, answer = self._run(tokens)
        every = torch.arange(len(tokens))
        states = torch.stack([layer[every, at] for at in probed.unbind(1) for layer in hidden], 1).detach()
        last = answer if answer is not None else hidden[-1][torch.arange(len(tokens)), output_position]
        return ModelOutput(self.head(self.norm(last)), states)

    def _run(self, tokens: Tensor) -> tuple[Sequence[Tensor], Tensor | None]:
        """Give the embedding and every layer's output before any final norm, and T5's decoded state."""
        body: Any = self.body
        if self.kind == "lstm":
            return body(tokens), None
        if self.kind == "t5":
            unnormed: list[Tensor] = []
            # transformers hands out the last layer after the final norm
            with body.encoder.final_layer_norm.register_forward_pre_hook(
                lambda module, given: unnormed.append(given[0])
            ):
                out = body(
                    input_ids=tokens, decoder_input_ids=torch.zeros_like(tokens[:, :1]), output_hidden_states=True
                )
            return [*out.encoder_hidden_states[:-1], unnormed[0]], out.last_hidden_state[:, 0]
        hidden = body(input_ids=tokens, output_hidden_states=True).hidden_states
        # Mamba's are those after each layer, and last the normed ones
        return ([body.embeddings(tokens), *hidden[:-1]] if self.kind == "mamba" else hidden), None


class _Lstm(nn.Module):
    """Layers of torch's LSTM, one by one, so that each hands out its states."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        layers = (nn.LSTM(config.d_model, config.d_model, batch_first=True) for _ in range(config.n_layers))
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        states = [self.embedding(tokens)]
        for layer in self.layers:
            # residual, as in all the others
            states.append(states[-1] + layer(states[-1])[0])
        return states


def _body(kind: str, config: ModelConfig, vocab_size: int, n_positions: int) -> nn.Module:
    if kind == "lstm":
        return _Lstm(config, vocab_size)
    # loaded here, since no other study needs it
    import transformers

    d_model, n_layers, n_heads = config.d_model, config.n_layers, config.n_heads
    d_mlp = config.d_mlp or 4 * d_model
    if kind == "bert":
        return transformers.BertModel(
            transformers.BertConfig(
                vocab_size=vocab_size,
                hidden_size=d_model,
                num_hidden_layers=n_layers,
                num_attention_heads=n_heads,
                intermediate_size=d_mlp,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                max_position_embeddings=n_positions,
                initializer_range=config.init_std,
            )
        )
    if kind == "t5":
        return transformers.T5Model(
            transformers.T5Config(
                vocab_size=vocab_size,
                d_model=d_model,
                d_kv=d_model // n_heads,
                d_ff=d_mlp,
                num_layers=n_layers,
                num_decoder_layers=1,
                num_heads=n_heads,
                dropout_rate=0.0,
            )
        )
    return transformers.MambaModel(
        transformers.MambaConfig(
            vocab_size=vocab_size, hidden_size=d_model, num_hidden_layers=n_layers, initializer_range=config.init_std
        )
    )


def train_architecture(config: RunConfig, folder: Path, options: Options) -> None:
    """Train and probe one architecture on the preset's tasks."""
    kind = str(options["kind"])

    def build(model: ModelConfig, vocab_size: int, n_positions: int, weights: torch.Generator) -> TrainableModel:
        # these libraries draw from the global generator, which is put back as it was
        with torch.random.fork_rng():
            torch.manual_seed(weights.initial_seed())
            return Wrapped(kind, model, vocab_size, n_positions)

    start_run(Rooms(config, taskset_of(config.tasks, config.seed), build), folder / "run")


def _arms(preset: str) -> Mapping[str, Arm]:
    settings = ("training.compile=off", "training.loss=output")
    # transformers runs Mamba token by token on a CPU
    others = {
        kind: Arm(settings, train_architecture, (("kind", kind),), cost=4.0 if kind == "mamba" else 1.2)
        for kind in (*TRANSFORMERS[1:], *OTHERS)
    }
    return {"gpt2": BASE} | others


def _measure(cells: Mapping[str, Path]) -> Measured:
    rows, beside, gaps, final = [], dict[str, float | None](), {}, {}
    for kind, cell in cells.items():
        folder = open_run(cell)
        scores, accuracy = task_rows(folder.scores()), accuracies(folder.steps())
        ari, null = over_layers(scores, "ari"), over_layers(scores, "null_ari")
        rows += [
            {
                "architecture": kind,
                "step": step,
                "ari": ari[step],
                "null_ari": null[step],
                "val_accuracy": accuracy.get(step),
            }
            for step in ari
        ]
        gaps[kind], final[kind] = ari[max(ari)], accuracy[max(accuracy)]
        parameters = folder.config()["resolved"].get("n_parameters")
        if parameters is None:
            raise RunFolderError(f"{folder.path / 'run.toml'} is damaged: resolved: expected n_parameters, found none")
        beside |= {
            f"ARI, {kind}": gaps[kind],
            f"accuracy, {kind}": final[kind],
            f"parameters, {kind}": float(parameters),
        }
    return Measured(*families(gaps, final), rows, beside)


def families(ari: Mapping[str, float | None], accuracy: Mapping[str, float]) -> tuple[float | None, float | None]:
    """Average the ARI over the Transformers, and over the others, that have learnt the tasks."""
    learnt = {kind: value for kind, value in ari.items() if accuracy[kind] >= LEARNT}
    return mean(learnt.get(kind) for kind in TRANSFORMERS), mean(learnt.get(kind) for kind in OTHERS)


STUDY = Study(
    name="architectures",
    question="Are task clusters a bias of the Transformer, or do other architectures form them too?",
    claim="Transformers form better task clusters than recurrent and state-space models of similar size.",
    statistic="task ARI within input and output at the end, validation, mean over layers 1 and up and over GPT-2, BERT "
    f"and T5, those with accuracy {LEARNT} or more",
    control="the same over an LSTM and Mamba",
    margin=0.0,
    arms=_arms,
    measure=_measure,
    figure=Lines("step", "ari", "architecture"),
)
