"""Differential privacy through the whole federation: both units, resume, refusals."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.data.tasks import load_tasks, truncated_prompts
from fedproxy_secure.dp.ledger import read_all
from fedproxy_secure.errors import ConfigError, DataError, FedProxyError, PrivacyError, RunFolderError
from fedproxy_secure.experiments.results import cut_notes
from fedproxy_secure.experiments.run import run
from fedproxy_secure.federate.build import build_client
from fedproxy_secure.federate.job import FederationJob
from fedproxy_secure.federate.server import initial_state
from fedproxy_secure.federate.shared_proxy import with_proxy
from fedproxy_secure.flower.engines import federate, with_ledger
from fedproxy_secure.models.adapters import attach
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.protect.secure_sum.noise import noise_of, ring_clip, signal_to_noise
from tests.support.tiny import tiny_llama, tiny_settings, tiny_tokenizer

RECORD = {"unit": "record", "target_epsilon": 8.0, "target_delta": 1e-3}
CLIENT = {"unit": "client", "target_epsilon": 8.0, "target_delta": 1e-3, "clip_norm": 0.05}
# A batch of the 12 records of a client, rounded up: without sampling, what steps cost is known at once.
# With sampling, a calibration takes seconds; tests that need it ask for two rounds, so that one serves all.
ALL = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = parse_config(tiny_settings(folder, fusion={"rule": "fedavg"}))
    job = FederationJob.from_config(config, seed=0)
    model, _ = load_llm(folder / "llm", device="cpu")
    return job, folder / "llm", initial_state(attach(model, job.adapter, seed=0))


def private(job, rounds=3, *, sampled=False, **privacy):
    batch = job.local.batch_size if sampled or privacy["unit"] == "client" else ALL
    return job.changed(
        privacy=job.privacy.model_copy(update=privacy),
        federate=job.federate.model_copy(update={"rounds": rounds}),
        local=job.local.model_copy(update={"batch_size": batch}),
    )


def serve(world, job, **more):
    _, folder, initial = world
    return federate(job, folder, initial, **more)


@pytest.fixture(scope="module")
def served(world, tmp_path_factory):
    """The folder of a run of two rounds with these settings: one for all who only read it."""

    @cache
    def run_of(unit):
        folder = tmp_path_factory.mktemp(unit)
        job = private(world[0], 2, sampled=True, **{"record": RECORD, "client": CLIENT}[unit])
        serve(world, job, run_folder=folder)
        return folder

    return run_of


@pytest.mark.parametrize("unit", ["record", "client"])
def test_every_client_spends_what_the_target_allows_and_no_more(served, unit):
    costs = read_all(served(unit) / "privacy")
    assert sorted(costs) == ["c0", "c1", "c2"]
    for cost in costs.values():
        assert 7.5 < cost.epsilon <= 8


@pytest.mark.parametrize("unit", ["record", "client"])
def test_losses_stay_with_the_clients(served, unit):
    lines = (served(unit) / "rounds.jsonl").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "loss" not in json.loads(line)


@pytest.mark.parametrize("settings", [RECORD, CLIENT], ids=["record", "client"])
def test_a_killed_round_goes_on_with_the_same_noise_and_is_paid_for_once(world, tmp_path, settings):
    class Killed(Exception):
        pass

    def kill(client):
        seen.append(client)
        if len(seen) == 5:  # in the second round
            raise Killed

    seen: list[str] = []
    job = private(world[0], **settings)
    with pytest.raises(Killed):
        serve(world, job, run_folder=tmp_path, on_client=kill)
    during = {n: c.epsilon for n, c in read_all(tmp_path / "privacy").items()}
    assert not list((tmp_path / "privacy").glob("*.noise.key"))  # no key outlives its round
    once = serve(world, private(world[0], **settings, rounds=3), run_folder=tmp_path)
    assert np.isfinite(once.adapter).all()
    after = read_all(tmp_path / "privacy")
    assert all(during[n] <= after[n].epsilon <= 8 for n in after)
    for file in (tmp_path / "privacy").glob("*.ledger.jsonl"):
        assert [json.loads(line)["round"] for line in file.read_text().splitlines()[1:]] == [0, 1, 2]
    assert not list((tmp_path / "privacy").glob("*.noise.key"))


def test_the_files_of_a_ledger_are_for_the_client_alone(served):
    folder = served("record") / "privacy"
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()}
    assert "c0.ledger.jsonl" in modes
    assert set(modes.values()) == {0o600}


def test_a_repeated_round_gives_the_same_bytes_where_training_does_not_repeat_to_the_bit(world, tmp_path):
    """Otherwise the difference of the two updates would be free of the noise."""
    job, folder, initial = world
    job = with_proxy(private(job, 2, sampled=True, **RECORD, ledger=str(tmp_path)), folder)
    client = build_client(job, 0, folder)
    first = client.train(round=0, start=initial.adapter).update
    with client.model.lent() as tuned:
        weights = next(p for p in tuned.parameters() if not p.requires_grad)
    exact = weights.detach().clone()
    weights.data *= 1.01  # far more than a GPU's rounding
    try:
        again = client.train(round=0, start=initial.adapter).update
        assert again.tobytes() == first.tobytes()
        other = client.train(round=1, start=initial.adapter).update
    finally:
        weights.data.copy_(exact)
    assert np.abs(other - first).max() > 0.1 * np.abs(first).max()


def test_a_broadcast_that_cannot_be_trained_from_is_not_paid_for(world, tmp_path):
    job, folder, initial = world
    job = with_proxy(private(job, 1, **RECORD, ledger=str(tmp_path)), folder)
    client = build_client(job, 0, folder)
    with pytest.raises(DataError, match=r"client c0, round 0: broadcast of shape \(3,\); must be"):
        client.train(round=0, start=np.zeros(3, dtype=np.float32))
    with pytest.raises(DataError, match=r"broadcast of shape \(3,\)"):
        client.train(round=0, start=initial.adapter, conflict=np.zeros(3, dtype=np.float32))
    assert read_all(tmp_path)["c0"].epsilon == 0


def test_repeated_rounds_remember_which_records_were_drawn_for_evaluations_alone(world, tmp_path):
    job, folder, initial = world
    job = with_proxy(private(job, 2, sampled=True, **RECORD, ledger=str(tmp_path)), folder)
    seen = []
    client = build_client(job, 0, folder)
    watched = replace(client, on_trained=lambda round, update, drawn: seen.append(drawn))
    for _ in range(2):
        update = watched.train(round=0, start=initial.adapter)
    assert seen[0] == seen[1] != []
    stored = (tmp_path / "c0.result.key").stat().st_size
    client.train(round=1, start=initial.adapter)
    assert (tmp_path / "c0.result.key").stat().st_size < stored
    assert update.truncated == update.loss == 0


def test_a_proxy_that_fails_for_a_token_ends_a_run_alike_with_and_without_that_token(world, tmp_path):
    """Before round 0, and in one line that says nothing about records."""
    job, folder, initial = world
    token = tiny_tokenizer()("q", add_special_tokens=False)["input_ids"][0]
    small = tiny_llama(4)
    small.resize_token_embeddings(token)
    shutil.copytree(folder, tmp_path / "proxy")
    small.save_pretrained(tmp_path / "proxy")
    ends = []
    for word in ("the", "queue"):
        root = tmp_path / word
        for split in ("train", "test"):
            rows = [{"text": f"{word} {i}", "choices": ["no", "yes"], "label": i % 2} for i in range(12)]
            for client in range(3):
                file = root / f"{client}.{split}.jsonl"
                file.parent.mkdir(exist_ok=True)
                file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = private(job, 1, **RECORD).changed(data_root=str(root))
        with pytest.raises(FedProxyError) as found:
            federate(asked, tmp_path / "proxy", initial)
        ends.append((type(found.value), str(found.value)))
    assert ends[0] == ends[1]


def test_how_many_prompts_were_cut_is_said_without_differential_privacy_only(tmp_path):
    for privacy, line in (
        ({"unit": "none"}, "72 prompts were cut to data.max_tokens=12."),
        (RECORD, "Prompts above data.max_tokens=12 were cut; the count is private."),
        (CLIENT, "Prompts above data.max_tokens=12 were cut; the count is private."),
    ):
        raw = tiny_settings(tmp_path, fusion={"rule": "fedavg"}, privacy=privacy, local={"batch_size": ALL})
        raw["data"]["max_tokens"] = 12
        config = parse_config(raw)
        assert cut_notes(truncated_prompts(config, load_tasks(config.data)), config) == (line,)
        if privacy["unit"] == "record":
            settings = {**privacy, "ledger": str(tmp_path / "ledger")}
            job = FederationJob.from_config(parse_config({**raw, "privacy": settings}), seed=0)
            client = build_client(with_proxy(job, tmp_path / "llm"), 0, tmp_path / "llm")
            assert client.truncated > 0
            start = np.zeros(sum(client.sizes), dtype=np.float32)
            assert client.train(round=0, start=start).truncated == 0


@pytest.mark.slow
def test_simulated_randomness_repeats_and_the_system_s_does_not(world):
    def move(**more):
        return serve(world, private(world[0], 1, **RECORD, **more)).adapter

    assert np.array_equal(move(randomness="unsafe_simulated"), move(randomness="unsafe_simulated"))
    assert not np.array_equal(move(), move())


def test_the_limit_stops_a_run_before_the_step_that_would_pass_it(world, tmp_path):
    job = private(world[0], 2, **RECORD)
    serve(world, job, run_folder=tmp_path)
    (tmp_path / "state.safetensors").unlink()  # a server that asks for all rounds once more
    with pytest.raises(PrivacyError, match=r"epsilon would become .* must be <= 8 \(privacy.max_epsilon\)"):
        serve(world, job, run_folder=tmp_path)
    assert all(c.epsilon <= 8 for c in read_all(tmp_path / "privacy").values())


def test_a_ledger_of_other_settings_is_refused_before_training(world, tmp_path):
    serve(world, private(world[0], 1, **RECORD), run_folder=tmp_path / "a")
    changed = private(world[0], 1, **RECORD | {"clip_norm": 2.0}, ledger=str(tmp_path / "a" / "privacy"))
    with pytest.raises(RunFolderError, match="is of another run"):
        serve(world, changed)


def test_the_noise_of_a_round_does_not_serve_again_on_another_proxy(world, tmp_path):
    """Where it did, the difference of the two updates would be free of it."""
    job, folder, _ = world
    job = with_proxy(private(job, 1, **RECORD, ledger=str(tmp_path)), folder)
    job = job.changed(proxy_sha256="a" * 64)
    build_client(job, 0, folder)
    with pytest.raises(RunFolderError, match="is of another run: run differs"):
        build_client(job.changed(proxy_sha256="b" * 64), 0, folder)


def test_processes_elsewhere_find_the_ledgers_of_a_run_folder_that_was_named_from_here(
    world, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with with_ledger(private(world[0], **RECORD), Path("runs/here")) as ready:
        assert ready.privacy.ledger == str(tmp_path.resolve() / "runs" / "here" / "privacy")
    named = private(world[0], **RECORD, ledger="/mine")
    with with_ledger(named, Path("runs/here")) as ready:
        assert ready is named


def test_client_noise_in_the_sum_has_the_accounted_scale(world):
    """Updates of length zero: what the adapter moves by is the mean of the clients' noise."""
    job = private(world[0], 1, **CLIENT)
    job = job.changed(local=job.local.model_copy(update={"learning_rate": 1e-30}))
    moved = serve(world, job).adapter - world[2].adapter
    d, clients = len(moved), len(job.clients)
    made = noise_of(job, d=d, clients=clients, threshold=3)
    step = ring_clip(job.privacy, bits=32, clients=clients) / ((2**31 - 1) // clients)
    wanted = np.sqrt(made.variance * clients / made.summands) * step / clients
    assert moved.std() / wanted == pytest.approx(1, abs=6 / np.sqrt(2 * d))
    assert abs(moved.std() / wanted - 2 / 3) > 0.2
    assert signal_to_noise(job, [d]) == pytest.approx(
        clients * 0.05 / (np.sqrt(d) * wanted * clients), rel=0.01
    )


@pytest.mark.parametrize(
    ("section", "change", "line"),
    [
        (
            "privacy",
            {**RECORD, "target_delta": 0.1},
            r"target_delta=0.1: must be < 1 / the client's number of records, rounded [^\d]*$",
        ),
        (
            "local",
            {"batch_size": 17},
            r"local.batch_size=17: must be <= the client's number of records, rounded [^\d]*$",
        ),
        (
            "privacy",
            {**RECORD, "target_epsilon": 1e-9, "target_delta": 1e-12},
            r"target_epsilon=1e-09: 2 steps at delta 1e-12 exceed it even with",
        ),
    ],
)
def test_settings_that_no_client_can_keep_end_before_training(world, section, change, line):
    job = private(world[0], 1, **RECORD)
    job = job.changed(**{section: getattr(job, section).model_copy(update=change)})
    with pytest.raises(ConfigError, match=line):
        serve(world, job)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"fusion": {"rule": "h_ties"}},
            r"fusion.rule=h_ties: with privacy.unit=client must be a rule that reads the mean alone",
        ),
        ({"protect": {"scheme": "unsafe_plaintext"}}, r"with privacy.unit=client must be masking"),
        ({"privacy": {**RECORD, "max_epsilon": 1.0}}, r"max_epsilon=1.0: must be >= target_epsilon=8.0"),
        ({"privacy": {"unit": "records"}}, r"privacy.unit='records'"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(tmp_path, changes, line):
    raw = tiny_settings(tmp_path, **{"fusion": {"rule": "fedavg"}, "privacy": CLIENT, **changes})
    with pytest.raises(ConfigError, match=line):
        parse_config(raw).check_protection()


def test_clients_refuse_client_level_privacy_in_the_clear(world):
    job = private(world[0], 1, **CLIENT)
    job = job.changed(protect=job.protect.model_copy(update={"scheme": "unsafe_plaintext"}))
    with pytest.raises(ConfigError, match=r"with privacy.unit=client must be masking"):
        serve(world, job)


@pytest.mark.parametrize(
    "settings",
    [pytest.param(RECORD, id="record", marks=pytest.mark.slow), pytest.param(CLIENT, id="client")],
)
def test_a_run_reports_guarantees_and_what_was_spent(tmp_path, settings):
    local = {"batch_size": ALL} if settings["unit"] == "record" else {}
    raw = tiny_settings(tmp_path, fusion={"rule": "fedavg"}, privacy=settings, local=local)
    report = run(parse_config(raw), tmp_path / "run")
    text = " ".join(report.guarantees)
    assert f"unit: one {settings['unit']}" in text.lower()
    assert "Not covered" in text
    spent = {e.metric: e.value for e in report.estimates}
    assert 7.5 < spent["epsilon spent, client that spent most"] <= 8
    assert "No differential privacy" not in " ".join(report.notes)
    again = parse_config({**raw, "privacy": {**settings, "randomness": "unsafe_simulated"}})
    assert "NOTHING" in " ".join(run(again, tmp_path / "again").guarantees)
