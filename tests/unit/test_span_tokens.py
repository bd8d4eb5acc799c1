"""A2 where the answer is known: the tokens that an update must tell, and those that it must not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks.base import Inconclusive, NotApplicable, Truth
from attacks.reconstruction.candidates import Candidates
from attacks.reconstruction.row_spaces import Spaces, spaces_of
from attacks.reconstruction.spans import LoraSpanTokens, Target, attack_one
from attacks.reconstruction.vectors import shuffled, vectors
from attacks.statistics import auc_value
from fedproxy_secure.data.encode import Encoded
from tests.support.lab import records, truth_of
from tests.support.reconstructions import maker_of_labs, rounds_of, run
from tests.support.tiny import VOCABULARY


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    return maker_of_labs(tmp_path_factory)


def linear_updates(rng, inputs, kind, *, rank=16, outputs=128):
    """Gradients of one step through three maps that share their inputs, [n, d]; the toy of the design."""
    matrices, maps = [], []
    for _ in range(3):
        a, b = rng.normal(size=(rank, inputs.shape[1])), rng.normal(size=(outputs, rank))
        errors = rng.normal(size=(len(inputs), outputs))
        if kind == "lora":
            matrices.append(b.T @ errors.T @ inputs)
        else:
            seen = inputs @ a.T
            matrices.append((b.T if kind == "core" else np.eye(outputs)) @ errors.T @ seen)
            maps.append(a)
    if kind == "lora":
        return Spaces(matrices=(np.concatenate(matrices),), maps=(None,))
    return Spaces(matrices=tuple(matrices), maps=tuple(maps))


TOY = {  # of the design, at 24, 96 and 200 tokens; capacity is 48 for `lora`, 16 a map for the others
    "lora": (1.00, 0.97, 0.87),
    "ffa": (0.87, 0.73, 0.59),
    "core": (0.81, 0.65, 0.56),
}


def test_the_linear_toy_tells_at_least_as_much_as_in_the_design_and_in_the_same_order(labs):
    found = []
    for kind in TOY:
        settings = labs().settings.changed(adapter=labs(kind).settings.adapter)
        for tokens in (24, 96, 200):
            aucs = []
            for seed in range(2):
                rng = np.random.default_rng(seed)
                vocabulary = rng.normal(size=(1000, 1, 128))
                spaces = linear_updates(rng, vocabulary[:tokens, 0], kind)
                candidates = Candidates.from_inputs(vocabulary, spaces.maps)
                target = attack_one(candidates, spaces, settings, 0, ("a",), rng)
                aucs.append(auc_value(target.scores, np.arange(1000) < tokens))
            found.append(np.mean(aucs))
    table = np.array(found).reshape(3, 3)
    assert np.all(table > np.array(list(TOY.values())) - 0.02)
    assert table[0, 0] == 1.0
    assert np.all(np.diff(table, axis=0) < 0)  # lora tells most, the core least
    assert np.all(np.diff(table, axis=1) < 0)  # the more tokens, the less of each


# A2


@pytest.mark.parametrize("clients", [1, 4])
def test_within_capacity_a2_names_every_token_and_no_other_also_in_a_sum(labs, clients):
    lab = labs()
    items, updates = rounds_of(lab, clients=clients)
    truth = truth_of(updates, items)
    tokens = truth.tokens(0, tuple(items))
    assert len(tokens) <= 48  # the capacity: rank 16 x three maps
    found, (target,) = run(LoraSpanTokens(), lab.view(updates, summed=clients > 1), truth)
    assert target.capacity == 48
    assert found["auc"].value == 1.0
    assert found["recall of named tokens"].value == 1.0
    assert found["precision of named tokens"].value == 1.0


def test_beyond_capacity_a2_names_none_and_still_tells_more_than_chance(labs):
    lab = labs()
    items, updates = rounds_of(lab, clients=4, tokens=30)
    found, _ = run(LoraSpanTokens(), lab.view(updates, summed=True), truth_of(updates, items))
    assert found["tokens over capacity"].value > 1.5
    assert found["recall of named tokens"].value < 0.1
    assert found["auc"].low > 0.6


def test_adamw_does_not_protect(labs):
    lab = labs(optimizer="adamw")
    items, updates = rounds_of(lab, clients=4)
    found, _ = run(LoraSpanTokens(), lab.view(updates, summed=True), truth_of(updates, items))
    assert found["auc"].low > 0.8


def test_the_auc_of_these_records_counts_no_word_of_more_than_one_record():
    """Tokens 0 to 29 are of the round's record alone, 30 to 59 of both, 60 to 89 of the one set aside."""
    read, aside = (Encoded(ids=(*tokens, 99), response_start=1) for tokens in (range(60), range(30, 90)))
    truth = truth_of({"a": np.zeros(1)}, {"a": (read,)})
    truth = Truth(clients={"a": replace(truth.clients["a"], holdout=(aside,))})

    def found(scores):
        target = Target(
            round=0,
            clients=("a",),
            scores=scores,
            chosen=scores > 0,
            null=(np.random.default_rng(0).normal(size=(9, 400)),),
            rank=1,
            capacity=9,
        )
        return {e.metric: e.value for e in LoraSpanTokens().score((target,), truth)}

    tokens, noise = np.arange(400), np.random.default_rng(1).uniform(0, 0.5, 400)
    words = found(np.where(tokens < 90, 1.0, 0.0) + noise)  # which words the client uses, and no more
    assert words["auc"] > 0.8
    assert abs(words["auc, these records"] - 0.5) < 0.2
    assert found(np.where(tokens < 30, 1.0, 0.0) + noise)["auc, these records"] == 1.0


@pytest.mark.parametrize(("read", "aside"), [(42, 18), (18, 42)])
def test_words_that_are_merely_common_tell_nothing_of_these_records(read, aside):
    """An adversary who knows how common each word is is at chance, however many records were set aside."""
    rng, vocabulary = np.random.default_rng(0), 600
    common = 1 / np.arange(1, vocabulary + 1)
    values = []
    for _ in range(40):
        rows = rng.choice(vocabulary, size=(read + aside, 20), p=common / common.sum())
        items = tuple(Encoded(ids=(*map(int, row), vocabulary), response_start=1) for row in rows)
        truth = truth_of({"a": np.zeros(1)}, {"a": items[:read]})
        truth = Truth(clients={"a": replace(truth.clients["a"], holdout=items[read:])})
        target = Target(
            round=0,
            clients=("a",),
            scores=np.append(common, 0),
            chosen=np.zeros(vocabulary + 1, dtype=bool),
            null=(rng.normal(size=(9, vocabulary + 1)),),
            rank=1,
            capacity=9,
        )
        found = {e.metric: e.value for e in LoraSpanTokens().score((target,), truth)}
        assert found["auc"] > 0.7
        values.append(found["auc, these records"])
    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / np.sqrt(len(values))


def test_a_single_vector_is_of_the_last_round_because_the_first_moves_no_a(labs):
    lab = labs()
    _, updates = rounds_of(lab, clients=2)
    view = lab.view(updates)
    later = replace(view, updates={**view.updates, (3, "c1"): updates["c1"]})
    assert [(r, names) for r, names, _ in vectors(later, most=1)] == [(3, ("c1",))]
    assert [r for r, _, _ in vectors(later, most=2)] == [0, 3]


@pytest.mark.parametrize(("optimizer", "steps"), [("sgd", 1), ("adamw", 5)])
def test_the_control_takes_the_way_that_the_run_took(labs, optimizer, steps):
    """Else a part of the attack that only reads updates of AdamW could be broken without notice."""
    lab = labs(local={"steps": 5}, optimizer=optimizer)
    items, updates = rounds_of(lab, clients=2)
    view, truth = LoraSpanTokens().positive(lab.view(updates), truth_of(updates, items))
    assert (view.settings.local.optimizer, view.settings.local.steps) == (optimizer, steps)
    found, _ = run(LoraSpanTokens(), view, truth)
    assert found["auc"].low > 0.55


def test_adapters_with_a_frozen_tell_less_and_the_core_least(labs):
    values = []
    for kind in ("lora", "ffa", "core"):
        lab = labs(kind)
        items, updates = rounds_of(lab, clients=4)
        found, _ = run(LoraSpanTokens(), lab.view(updates, summed=True), truth_of(updates, items))
        values.append(found["auc"].value)
    assert values[0] > values[1] + 0.05 > values[2] + 0.05
    assert values[2] > 0.6  # less is not nothing


@pytest.mark.parametrize("kind", ["updates", "sums", "adapters"])
def test_shuffling_vectors_leaves_the_adapters_and_the_numbers(labs, kind):
    lab = labs()
    _, updates = rounds_of(lab, clients=2)
    view = lab.view(updates, summed=kind != "updates")
    if kind == "adapters":  # a client's view: what a round moved is the difference of two broadcasts
        view = replace(view, sums={})
    mixed = shuffled(view, np.random.default_rng(0))
    assert mixed.adapters is view.adapters
    before, after = vectors(view, most=9), vectors(mixed, most=9)
    assert [v[:2] for v in before] == [v[:2] for v in after]
    for (*_, one), (*_, other) in zip(before, after, strict=True):
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(np.sort(one), np.sort(other), rtol=1e-5, atol=1e-9)


def test_controls_and_other_attacks_do_not_read_random_text_again(labs):
    lab = labs()
    _, updates = rounds_of(lab, clients=2)
    view = lab.view(updates)
    first = Candidates.of(view)
    mixed, _ = LoraSpanTokens().negative(view, None, np.random.default_rng(0))
    assert Candidates.of(mixed).texts is first.texts
    assert Candidates.of(mixed).rows is first.rows


def test_an_update_that_is_zero_is_inconclusive(labs):
    lab = labs()
    with pytest.raises(Inconclusive, match="every update is zero"):
        run(LoraSpanTokens(), lab.view({"c0": np.zeros_like(lab.start)}), Truth(clients={}))


def nothing_in_it(lab, kind, update, rng):
    if kind == "gaussian":
        return rng.normal(0, 1e-3, len(update)).astype(np.float32)
    if kind == "shuffled":
        return rng.permutation(update)
    return lab.update(records(rng, 8, tokens=200, length=10))


@pytest.mark.parametrize("kind", ["gaussian", "shuffled", "random text"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a2_is_at_chance_where_nothing_is_to_be_found(labs, kind, optimizer):
    """95 % intervals: 4 or more of 12 miss .5 with a probability below 1 in 400."""
    lab = labs(optimizer=optimizer)
    items, updates = rounds_of(lab, clients=1)
    truth = truth_of(updates, items)
    with lab.opened() as box:
        candidates = Candidates.of(lab.view(updates))
    misses, values = 0, []
    for seed in range(12):
        rng = np.random.default_rng(100 + seed)
        vector = nothing_in_it(lab, kind, updates["c0"], rng)
        with lab.opened() as box:
            spaces = spaces_of(box, vector, 0, "lora")
        target = attack_one(candidates, spaces, lab.settings, 0, ("c0",), rng)
        auc = LoraSpanTokens().score((target,), truth)[0]
        misses += not auc.low <= 0.5 <= auc.high
        values.append(auc.value)
    assert misses < 4
    assert abs(np.mean(values) - 0.5) < 4 * np.std(values, ddof=1) / np.sqrt(12)


def test_a_trimmed_sum_is_not_taken_for_a_combination_of_gradients(labs):
    lab = labs()
    items, updates = rounds_of(lab, clients=4)
    trimmed = {n: np.where(np.abs(u) > np.quantile(np.abs(u), 0.3), u, 0) for n, u in updates.items()}
    fusion = lab.settings.fusion.model_copy(update={"rule": "h_ties"})
    view = replace(lab.view(trimmed, summed=True), settings=lab.settings.changed(fusion=fusion))
    found, _ = run(LoraSpanTokens(), view, truth_of(trimmed, items))
    assert found["auc"].low > 0.6


def test_rounding_of_parameters_bounds_what_an_update_tells(labs):
    lab = labs(local={"learning_rate": 1e-8})
    items, updates = rounds_of(lab, clients=1)
    found, (target,) = run(LoraSpanTokens(), lab.view(updates), truth_of(updates, items))
    assert target.rank < 10
    assert found["precision of named tokens"].value in (0.0, 1.0)


@pytest.mark.parametrize("more", [{"blocks": (1,)}, {"modules": "mlp"}])
def test_adapters_away_from_embeddings_take_away_a2s_exact_answer(labs, more):
    lab = labs(adapter=more)
    with lab.opened() as box:
        assert not box.reads_tokens
    items, updates = rounds_of(lab, clients=1, tokens=12)
    found, _ = run(LoraSpanTokens(), lab.view(updates), truth_of(updates, items))
    assert found["auc"].value < 1
    assert found["recall of named tokens"].value < 0.8


def test_a_block_that_is_not_adapted_has_no_space(labs):
    lab = labs(adapter={"blocks": (1,)})
    with lab.opened() as box, pytest.raises(NotApplicable, match="block 0 of the proxy is not adapted"):
        spaces_of(box, lab.start, 0, "lora")


def test_gpt2_reads_tokens_with_their_places(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from attacks.white_box import WhiteBox
    from fedproxy_secure.config import AdapterConfig
    from fedproxy_secure.models.adapters import attach
    from tests.support.tiny import tiny_tokenizer

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = attach(GPT2LMHeadModel(config), AdapterConfig(rank=2), seed=0).eval()
    box = WhiteBox(model, tiny_tokenizer())
    assert box.groups[0].names == ("attn.c_attn",)
    assert box.reads_tokens
    assert box.token_inputs().shape == (VOCABULARY, 8, 16)
