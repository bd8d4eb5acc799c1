"""What methods start from: pooled records in equal shares of tasks, and blocks that are exact copies."""

import pytest
import torch

from fedproxy_secure.config import parse_config
from fedproxy_secure.config.kinds import METHODS
from fedproxy_secure.data.records import Record, Task
from fedproxy_secure.experiments.inputs import Inputs, in_equal_shares
from fedproxy_secure.experiments.method import Method
from fedproxy_secure.experiments.results import MethodResult, accuracies_of, choice_notes, losses_of
from fedproxy_secure.experiments.stages import Materials, exact_proxy
from fedproxy_secure.experiments.sweeps.method_cells import Cell, run_cell
from fedproxy_secure.models.adapters import adapter_size, attach, get_vector
from fedproxy_secure.models.llm import with_blocks
from tests.support.tiny import public_windows, same_weights, tiny_llama, tiny_settings, tiny_tokenizer

SETTINGS = {
    "data": {"max_tokens": 32},
    "adapter": {"rank": 2, "alpha": 4},
    "local": {"steps": 3, "batch_size": 4},
    "federate": {"rounds": 2},
}


def records(letter: str, count: int) -> tuple[Record, ...]:
    return tuple(Record(prompt=f"{letter}{i}", choices=(" yes", " no"), label=i % 2) for i in range(count))


def inputs_of(folder, llm, *tasks: tuple[Record, ...], ratio=None, **settings) -> Inputs:
    text = public_windows(2)
    materials = Materials(
        llm=llm,
        tokenizer=tiny_tokenizer(),
        windows=text,
        fidelity_windows=text,
        healing_windows=text[:0],
        aligning_windows=text[:0],
        tasks=tuple(Task(name=f"t{i}", train=t, test=t[:1], holdout=()) for i, t in enumerate(tasks)),
    )
    config = parse_config({**SETTINGS, **settings})
    return Inputs(config=config, materials=materials, seed=0, ratio=ratio, folder=folder)


def pooled(folder, *tasks: tuple[Record, ...]):
    """Return what pooled training of the tiny model teaches its adapter."""
    llm = tiny_llama(2)
    return torch.from_numpy(get_vector(inputs_of(folder, llm, *tasks).train_pooled(llm)))


class Looks(Method):
    """A method that only looks at what its cell would record."""

    def run(self, inputs):
        assert (inputs.config.audit.record, inputs.config.audit.folder) == (False, None)
        return MethodResult(fused={}, tuned=None, upload_bytes=7)


def test_a_comparison_records_nothing_whatever_its_settings_say(tmp_path):
    """Its cells have no folder of their own, and would record all into one."""
    config = parse_config(tiny_settings(tmp_path, audit={"record": True, "folder": str(tmp_path / "t")}))
    with METHODS.added("looks", Looks(name="looks", title="for the test", needs_ratio=False)):
        assert run_cell(config, Cell(method="looks", remove_ratio=None, seed=0)).outcome.upload_bytes == 7


def test_lists_are_joined_in_equal_shares_by_starting_short_ones_again():
    assert in_equal_shares([[1, 2, 3, 4, 5], [6, 7]]) == [1, 2, 3, 4, 5, 6, 7, 6, 7, 6]
    assert in_equal_shares([[1, 2], [3, 4]]) == [1, 2, 3, 4]


def test_a_task_of_few_records_is_trained_on_as_often_as_one_of_many(tmp_path):
    few, many = records("f", 2), records("m", 8)
    assert torch.equal(pooled(tmp_path, few, many), pooled(tmp_path, few * 4, many))
    assert not torch.equal(pooled(tmp_path, few, many), pooled(tmp_path, few, many[:2]))


@pytest.mark.parametrize(("participation", "steps"), [(1.0, 24), (0.5, 12)])
def test_who_trains_alone_or_on_pooled_records_takes_as_many_steps_as_a_federation(
    tmp_path, monkeypatch, participation, steps
):
    taken = []
    monkeypatch.setattr("fedproxy_secure.experiments.inputs.train", lambda *_, **how: taken.append(how))
    of_four = [records(letter, 2) for letter in "abcd"]  # as many as the settings have clients
    few = {"rounds": 2, "participation": participation, "min_clients": 2}
    llm = tiny_llama(2)
    inputs = inputs_of(tmp_path, llm, *of_four, federate=few, protect={"scheme": "unsafe_plaintext"})
    inputs.train_pooled(llm)
    for own in inputs.each_task():
        own.train_pooled(tiny_llama(2))
    assert [how["steps"] for how in taken] == [steps, *[steps // 4] * 4]


@pytest.mark.parametrize(
    "compress",
    [{"kind": "low_rank", "options": {"embeddings": 0.5}}, {"kind": "quantised"}, {"kind": "width"}],
)
def test_an_exact_proxy_has_exact_copies_whatever_the_compression(tmp_path, compress):
    llm = tiny_llama(4)
    inputs = inputs_of(
        tmp_path, llm, records("r", 2), ratio=0.5, compress={**compress, "importance": "uniform"}
    )
    proxy = inputs.exact_proxy()
    assert proxy.kept == (0, 3)
    assert same_weights(proxy.model, with_blocks(llm, [0, 3]))


@pytest.mark.parametrize(
    "compress",
    [
        {"kind": "drop_blocks"},
        {"kind": "low_rank"},
        {"kind": "width"},
        {"kind": "withheld_bottom"},
        {"kind": "rotated"},
        {"kind": "quantised", "options": {"bits": 3}},
    ],
    ids=lambda compress: compress["kind"],
)
@pytest.mark.parametrize("name", ["fedot_equal_bytes", "fedot_equal_bytes_lr"])
def test_offsite_tuning_at_equal_bytes_uploads_as_much_as_fedproxy_whatever_the_compression(
    tmp_path, monkeypatch, compress, name
):
    settings = {"compress": compress, "adapter": {"rank": 8, "alpha": 16}, "heal": {"steps": 1}}
    inputs = inputs_of(tmp_path, tiny_llama(8), records("r", 2), ratio=0.5, **settings)
    proxy = exact_proxy(inputs.config, inputs.materials, seed=0, remove_ratio=0.5).finished()
    held = adapter_size(attach(proxy.model, inputs.config.adapter, seed=0))
    sent = []

    def federate(_, model, settings, *, blocks):
        tuned = attach(model, settings.adapter, seed=0, blocks=blocks)
        sent.append((settings.adapter, adapter_size(tuned)))
        return model, 0

    monkeypatch.setattr(Inputs, "federate", federate)
    monkeypatch.setattr(Inputs, "plugged_back", lambda *_, **__: MethodResult(fused={}))
    METHODS.get(name).run(inputs)
    ((wide, numbers),) = sent
    assert numbers == pytest.approx(held, rel=0.5 / wide.rank)
    assert wide.alpha == 2 * wide.rank
    if compress["kind"] == "drop_blocks":
        assert (wide.rank, numbers) == (8 * 4 // 2, held)


@pytest.mark.parametrize("tasks", [["instruction", "sst2", "rte"], ["instruction"] * 3])
def test_tasks_without_a_wrong_answer_have_a_loss_and_are_in_no_accuracy(tmp_path, tasks):
    clients = [{"name": f"t{i}", "task": task} for i, task in enumerate(tasks)]
    llm, told = tiny_llama(2), Record(prompt="do", choices=(" done",), label=0)
    inputs = inputs_of(
        tmp_path,
        llm,
        (told,),
        records("r", 2),
        records("s", 2),
        data={"clients": clients, "max_tokens": 32},
    )
    free = [f"t{i}" for i, task in enumerate(tasks) if task == "instruction"]
    found = inputs.evaluate(llm)
    assert list(found) == ["t0", "t1", "t2"]
    assert list(losses_of(found)) == free
    assert list(accuracies_of(found)) == [name for name in found if name not in free]
    (note,) = choice_notes(inputs.config)
    assert ("Left out of all accuracies: t0 (only one choice" in note) == (len(free) == 1)
    assert choice_notes(parse_config({})) == ()
