"""Settings that take surfaces away: where adapters sit, how small a sum may be, which sums may differ."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.clientapp import ClientApp
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from fedproxy_secure.config import AdapterConfig, ProtectConfig, parse_config
from fedproxy_secure.errors import ConfigError, ModelError, ProtocolAborted, RoundAborted
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.flower import client_app
from fedproxy_secure.flower.engines import federate, with_keys
from fedproxy_secure.flower.in_process import InProcessGrid
from fedproxy_secure.flower.server_app import serve
from fedproxy_secure.models.adapters import (
    adapter_size,
    attach,
    block_deltas,
    get_vector,
    set_vector,
)
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.protect.secure_sum.noise import planned_threshold
from fedproxy_secure.proxy_intake import store as proxy_store
from fedproxy_secure.secagg.selftest.rehearsal import identities, ring, terms_for
from fedproxy_secure.secagg.terms import TermsPolicy
from tests.support.tampering import federate_tampered
from tests.support.tiny import tiny_llama, tiny_settings
from threat_models import get

ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


# where adapters sit


def adapted(model, **settings):
    """(block, map) of every adapted linear map."""
    tuned = attach(model, AdapterConfig(rank=2, **settings), seed=0)
    return {(block, name.removesuffix(".weight")) for block, name in block_deltas(tuned)}


def test_by_default_every_map_of_every_block_is_adapted():
    assert adapted(tiny_llama(2)) == {(b, name) for b in range(2) for name in ATTENTION | MLP}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"blocks": (1, 2)}, {(b, name) for b in (1, 2) for name in ATTENTION | MLP}),
        ({"modules": "attention"}, {(b, name) for b in range(3) for name in ATTENTION}),
        ({"blocks": (2,), "modules": "mlp"}, {(2, name) for name in MLP}),
    ],
)
def test_only_the_chosen_blocks_and_modules_are_adapted(settings, expected):
    assert adapted(tiny_llama(3), **settings) == expected


def test_attention_and_mlp_are_told_apart_in_other_families():
    gpt2 = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    opt = OPTConfig(
        vocab_size=9,
        max_position_embeddings=8,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
    )
    for model, names in (
        (
            GPT2LMHeadModel(gpt2),
            {"attention": {"attn.c_attn", "attn.c_proj"}, "mlp": {"mlp.c_fc", "mlp.c_proj"}},
        ),
        (OPTForCausalLM(opt), {"mlp": {"fc1", "fc2"}}),
    ):
        for modules, expected in names.items():
            plain = type(model)(model.config)
            assert {name for _, name in adapted(plain, modules=modules)} == expected


def test_what_is_not_adapted_stays_as_it_was():
    model = tiny_llama(2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tuned = attach(model, AdapterConfig(rank=2, blocks=(1,)), seed=0)
    set_vector(tuned, get_vector(tuned) + 1)
    merged = tuned.merge_and_unload()
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, before[name]) == (".layers.1." not in name or "norm" in name)


def test_fewer_places_are_fewer_numbers_to_send():
    sizes = [
        adapter_size(attach(tiny_llama(2), AdapterConfig(rank=2, **more), seed=0))
        for more in ({}, {"blocks": (0,)}, {"blocks": (0,), "modules": "mlp"})
    ]
    assert sizes[0] == 2 * sizes[1] > 2 * sizes[2] > 0


def test_blocks_that_a_plan_names_go_before_the_adapters_own():
    tuned = attach(tiny_llama(3), AdapterConfig(rank=2, blocks=(0,)), seed=0, blocks=(2,))
    assert {block for block, _ in block_deltas(tuned)} == {2}


def test_a_block_that_the_model_lacks_is_refused():
    with pytest.raises(ModelError, match=r"adapter.blocks=\[0, 2\]: must be below 2, the model's blocks"):
        adapted(tiny_llama(2), blocks=(0, 2))


@pytest.mark.parametrize(
    ("blocks", "line"),
    [
        ([], r"adapter: blocks=\[\]: must be at least one, all different"),
        ([1, 1], r"adapter: blocks=\[1, 1\]: must be at least one, all different"),
        ([-1], r"adapter.blocks.0=-1: "),
    ],
)
def test_blocks_that_make_no_sense_are_refused(blocks, line):
    with pytest.raises(ConfigError, match=line):
        parse_config({"adapter": {"blocks": blocks}})


def test_an_unknown_part_of_a_block_is_refused():
    with pytest.raises(ConfigError, match=r"adapter.modules='all_linear': must be"):
        parse_config({"adapter": {"modules": "all_linear"}})


# federations


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A job of five clients and two masked rounds, the model's folder."""
    folder = tmp_path_factory.mktemp("world")
    config = parse_config(
        tiny_settings(folder, clients=5, federate={"rounds": 2}, fusion={"rule": "fedavg"})
    )
    return FederationJob.from_config(config, seed=0), folder / "llm"


def started(world, *, adapter=None, rounds=2, **protect):
    job, folder = world
    job = job.changed(
        adapter=job.adapter.model_copy(update=adapter or {}),
        federate=job.federate.model_copy(update={"rounds": rounds}),
        protect=ProtectConfig(**protect),
    )
    model, _ = load_llm(folder, device="cpu")
    return job, folder, initial_state(attach(model, job.adapter, seed=0))


class Losing(ClientApp):
    """The real client app, without the nodes that are lost when asked to mask in a round; sees states."""

    def __init__(self, lost):
        super().__init__()
        self.lost, self.round, self.states = lost, {}, {}

    def __call__(self, message, context):
        node, kind = context.node_id, message.metadata.message_type
        if kind == "train":
            self.round[node] = int(message.content.config_records["round"]["round"])
        if kind == "query.mask" and node in self.lost.get(self.round[node], ()):
            raise RuntimeError("no power")
        reply = client_app.app(message, context)
        self.states[node] = context.state
        return reply


def serve_losing(world, lost, run_folder=None, **settings):
    job, folder, initial = started(world, **settings)
    app = Losing(lost)
    with proxy_store.offered_on_this_host(folder), with_keys(job) as keyed:
        state = serve(InProcessGrid(app, 5), keyed, folder, initial, run_folder=run_folder)
    return state, app


def test_a_masked_federation_trains_the_chosen_places_alone(world):
    job, folder, initial = started(world, rounds=1, adapter={"blocks": (1,), "modules": "attention"})
    final = federate(job, folder, initial)
    assert len(final.adapter) == len(initial.adapter) == 4 * 2 * 2 * 16
    assert not np.array_equal(final.adapter, initial.adapter)


def test_where_adapters_sit_is_part_of_what_all_agree_on(world):
    job = started(world)[0]
    other = started(world, adapter={"modules": "mlp"})[0]
    assert job.agreed_sha256() != other.agreed_sha256()
    assert FederationJob.from_json(other.to_json()) == other


# how small a sum may be


def test_the_least_cohort_raises_the_threshold(world):
    job, _, _ = started(world)
    assert planned_threshold(job) == 4
    assert planned_threshold(started(world, min_cohort=5)[0]) == 5
    assert planned_threshold(started(world, min_cohort=2)[0]) == 4  # never below what is safe


def test_a_round_that_loses_more_than_the_least_cohort_allows_is_aborted(world):
    state, _ = serve_losing(world, {0: {4}}, rounds=1)
    assert state.round == 1
    with pytest.raises(RoundAborted, match="mask: 4 of 5 clients; must be >= 5"):
        serve_losing(world, {0: {4}}, rounds=1, min_cohort=5)


def accepts(asked, least):
    plan, (_, roster) = ring(5, 8), identities(5)
    terms = replace(terms_for(plan, roster), threshold=asked)
    settings = terms.settings_sha256
    own = TermsPolicy(roster=roster, settings_sha256=settings, colluders=0, rounds=1, min_cohort=least)
    own.check(terms, name="c00", broadcast_sha256=terms.broadcast_sha256, plan=plan)


def test_a_client_refuses_terms_under_which_fewer_would_be_summed():
    accepts(4, 4)
    accepts(5, 5)
    with pytest.raises(ProtocolAborted, match="threshold=4: must be 5 to 5"):
        accepts(4, 5)
    with pytest.raises(ProtocolAborted, match="cohort of 5: must be >= 6, this client's least"):
        accepts(5, 6)


@pytest.mark.parametrize(
    ("protect", "line"),
    [
        ({"min_cohort": 5}, r"protect.min_cohort=5: must be <= 4, the clients of a round"),
        (
            {"scheme": "unsafe_plaintext", "min_cohort": 3},
            r"protect.min_cohort=3: is not enforced with protect.scheme=unsafe_plaintext",
        ),
        (
            {"scheme": "unsafe_plaintext", "refuse_differencing": True},
            r"protect.refuse_differencing=True: is not enforced",
        ),
    ],
)
def test_protections_that_cannot_be_kept_are_refused_before_the_run(protect, line):
    with pytest.raises(ConfigError, match=line):
        parse_config({"protect": protect}).check_protection()
    parse_config({"protect": {"min_cohort": 4, "refuse_differencing": True}}).check_protection()


# which sums differ


def participants(folder):
    return [json.loads(x)["participants"] for x in (folder / "rounds.jsonl").read_text().splitlines()]


def test_two_sums_that_differ_by_one_client_are_made_only_if_nobody_refuses(world, tmp_path):
    state, _ = serve_losing(world, {1: {4}}, run_folder=tmp_path)
    assert state.round == 2
    everybody, fewer = (set(p) for p in participants(tmp_path))
    assert len(everybody - fewer) == 1


@pytest.mark.parametrize("lost", [{1: {4}}, {0: {4}}], ids=["one leaves", "one joins"])
def test_a_sum_that_differs_by_one_client_from_an_earlier_one_is_refused(world, tmp_path, lost):
    with pytest.raises(RoundAborted, match=r"confirm: [01] of \d clients"):
        serve_losing(world, lost, run_folder=tmp_path, refuse_differencing=True)
    assert len(participants(tmp_path)) == 1  # the first round stands


def test_equal_cohorts_and_those_that_differ_by_more_go_on(world, tmp_path):
    state, _ = serve_losing(world, {}, rounds=3, refuse_differencing=True)
    assert state.round == 3
    lost = {0: {2}, 1: {3}}  # one leaves, another comes back
    state, _ = serve_losing(world, lost, run_folder=tmp_path, refuse_differencing=True)
    first, second = (set(p) for p in participants(tmp_path))
    assert len(first ^ second) == 2


def test_ckks_refuses_such_sums_too(world):
    pytest.importorskip("tenseal")
    with pytest.raises(RoundAborted):
        serve_losing(world, {1: {4}}, scheme="ckks", refuse_differencing=True)


# what all train from


def test_a_client_that_is_sent_another_adapter_than_its_terms_name_takes_no_part(world, tmp_path):
    job, folder, initial = started(world, rounds=1)

    def change(kind, client, content):
        if kind != "train" or client != "c3":
            return content
        vectors = ArrayRecord({"adapter": Array(np.zeros_like(initial.adapter))})
        return RecordDict({**content, "vectors": vectors})

    federate_tampered(job, folder, initial, tmp_path, get("active_server"), change)
    assert participants(tmp_path) == [["c0", "c1", "c2", "c4"]]
