"""Attacks on a Hugging Face folder alone: which run, what they find, and one-line errors."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from attacks.base import NotApplicable
from attacks.cli import app
from attacks.extraction.proxy import ProxyExtraction
from attacks.folder import attack_folder, read_canaries
from fedproxy_secure.compress.proxy import save_model
from fedproxy_secure.data.encode import Encoded, batch_loss, prompt_ids, text_ids, training_batch
from fedproxy_secure.errors import ConfigError, DataError, ModelError
from fedproxy_secure.evidence.finding import Outcome
from fedproxy_secure.models.llm import with_blocks
from tests.support.tiny import save_tiny, tiny_llama, tiny_tokenizer
from tests.support.tiny_gguf import grouped_llama, write_gguf

SECRETS = ("4711", "0815", "2718", "3141")


def rows(file, values):
    file.write_text("".join(json.dumps(v) + "\n" for v in values))
    return file


def words(count, seed):
    """Random letters: nothing but memory can tell one file from another."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefghij"), 24)) for _ in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model that knows its members and canaries by heart, and the files that say which they are."""
    place = tmp_path_factory.mktemp("folder")
    model, tokenizer = tiny_llama(2), tiny_tokenizer()
    members, others = words(24, 0), words(40, 1)
    items = [Encoded(ids=tuple(prompt_ids(t, tokenizer)), response_start=1) for t in members]
    prompts = [f"{name} is" for name in ("red", "blue", "green", "grey")]
    for prompt, secret in zip(prompts, SECRETS, strict=True):
        start = prompt_ids(prompt, tokenizer)
        items.append(Encoded(ids=(*start, *text_ids(f" {secret}", tokenizer)), response_start=len(start)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = batch_loss(model, training_batch(items, pad_id=0, device="cpu"))
        loss.backward()
        optimizer.step()
    save_model(model.eval(), tokenizer, place / "llm")
    save_model(with_blocks(model, [0]), tokenizer, place / "proxy")
    rows(place / "members.jsonl", [{"text": t} for t in members])
    rows(place / "others.jsonl", [{"text": t} for t in others])
    rows(
        place / "canaries.jsonl",
        [{"prompt": p, "secret": s} for p, s in zip(prompts, SECRETS, strict=True)],
    )
    return place


def by_attack(findings):
    return {f.attack: f for f in findings}


def test_a_bare_folder_is_asked_for_its_hidden_size_alone(files):
    (found,) = attack_folder(files / "llm", seconds=60)
    assert (found.attack, found.outcome, found.view) == ("logit_svd", Outcome.SUCCEEDED, "api_user")
    assert found.estimates[1].value == 16


@pytest.mark.slow
def test_a_gguf_file_and_a_known_name_are_models_too(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROXY_CACHE", str(tmp_path / "cache"))
    file = write_gguf(grouped_llama(tied=True), tmp_path / "tiny.gguf")
    (found,) = attack_folder(file, seconds=60)
    assert found.outcome == Outcome.SUCCEEDED
    found = by_attack(attack_folder(file, proxy=file, seconds=60))["proxy_extraction"]
    assert "nothing is left to extract" in found.reason
    with pytest.raises(ModelError, match=r"^model.path=.*there is no file"):
        attack_folder(tmp_path / "none.gguf")
    (found,) = attack_folder(Path("demo"), seconds=60)
    assert found.outcome == Outcome.SUCCEEDED


def test_members_and_canaries_that_a_model_knows_are_found(files):
    found = by_attack(
        attack_folder(
            files / "llm",
            members=files / "members.jsonl",
            others=files / "others.jsonl",
            canaries=files / "canaries.jsonl",
            seconds=60,
        )
    )
    assert set(found) == {"model_membership", "canary_exposure", "logit_svd"}
    membership, exposure = found["model_membership"], found["canary_exposure"]
    assert membership.outcome == Outcome.SUCCEEDED
    assert membership.headline.value > 0.9
    assert membership.headline.n == 48
    assert exposure.headline.value > 0.9
    (said,) = (e for e in exposure.estimates if e.metric == "extracted from the fused LLM")
    assert said.value == 1


def test_strangers_are_not_taken_for_members(files, tmp_path):
    rows(tmp_path / "a.jsonl", [{"text": t} for t in words(24, 2)])
    found = by_attack(
        attack_folder(
            files / "llm", members=tmp_path / "a.jsonl", others=files / "others.jsonl", seconds=60
        )
    )
    headline = found["model_membership"].headline
    assert headline.low <= 0.5 <= headline.high


@pytest.mark.parametrize(
    ("members", "others", "told"),
    [
        (
            [],
            "others",
            "have 0 and 40 texts, 40 of the others not among the members; must be >= 4 and >= 5",
        ),
        ("members", "members", "have 24 and 24 texts, 0 of the others not among the members; must be"),
    ],
)
def test_texts_of_which_no_membership_can_be_asked_are_refused_with_their_numbers(
    files, tmp_path, members, others, told
):
    empty = rows(tmp_path / "empty.jsonl", [])
    given = {name: files / f"{name}.jsonl" for name in ("members", "others")}
    with pytest.raises(DataError, match=told):
        attack_folder(files / "llm", members=given[members] if members else empty, others=given[others])


def test_with_a_proxy_the_folder_is_the_victim_of_a_client(files, monkeypatch):
    seen = []

    def stop(attack, view, question, budget, rng):
        seen.append(view)
        raise NotApplicable("was seen")

    monkeypatch.setattr(ProxyExtraction, "guess", stop)
    found = by_attack(attack_folder(files / "llm", proxy=files / "proxy", seconds=1000))
    assert {name: f.view for name, f in found.items()} == dict.fromkeys(
        ("logit_svd", "proxy_extraction"), "client"
    )
    assert found["proxy_extraction"].reason == "was seen"
    assert [(view.proxy, view.api, view.llm) for view in seen] == [(files / "proxy", files / "llm", None)]


@pytest.mark.slow
def test_with_a_proxy_the_folder_is_the_victim(files):
    found = by_attack(attack_folder(files / "llm", proxy=files / "proxy", seconds=1000))
    assert set(found) == {"logit_svd", "proxy_extraction"}
    extraction = found["proxy_extraction"]
    assert extraction.view == "client"
    assert extraction.positive.low > 0.05
    assert extraction.headline.low > 0
    assert not any(e.metric.endswith("accuracy") for e in extraction.estimates)  # there are no records


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_does_not(files):
    def run(seed):
        found = attack_folder(
            files / "llm", members=files / "members.jsonl", others=files / "others.jsonl", seed=seed
        )
        return [dataclasses.replace(f, seconds=0) for f in found]

    assert run(1) == run(1) != run(2)


def test_files_that_cannot_be_used_are_named_in_one_line(files, tmp_path):
    with pytest.raises(ConfigError, match="only one is given; A6 needs both"):
        attack_folder(files / "llm", members=files / "members.jsonl")
    with pytest.raises(ConfigError, match="profile=huge: must be smoke"):
        attack_folder(files / "llm", profile="huge")
    with pytest.raises(ModelError, match="no such folder; give a model's folder, or a hub id"):
        attack_folder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    for folders in ((tmp_path / "empty", None), (files / "llm", tmp_path / "empty")):
        with pytest.raises(ModelError, match=r"model\.path=.*empty: has no config\.json; must be a folder"):
            attack_folder(folders[0], proxy=folders[1])
    (tmp_path / "half").mkdir()
    shutil.copy(files / "llm/config.json", tmp_path / "half")
    with pytest.raises(ModelError, match=r"half: cannot be loaded: .* of: \(1\) .*\(3\)") as raised:
        attack_folder(tmp_path / "half")
    assert "\n" not in str(raised.value)
    with pytest.raises(
        ConfigError, match="its vocabulary of 1536 tokens is not the victim's of 259; both must be the same"
    ):
        attack_folder(files / "llm", proxy="demo")
    rows(tmp_path / "bad.jsonl", [{"text": "fine"}, {"words": "no text"}])
    with pytest.raises(DataError, match="row 2: must have a text"):
        attack_folder(files / "llm", members=tmp_path / "bad.jsonl", others=files / "others.jsonl")


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"secret": "1234"}, "row 1: must have a prompt"),
        ({"prompt": "x", "secret": "12a4"}, "row 1: secret: must be 4 digits"),
        ({"prompt": "x", "secret": "123"}, "row 1: secret: must be 4 digits"),
        ({"prompt": "x", "secret": "1234", "repeats": 0}, "repeats=0: must be an integer >= 1"),
    ],
)
def test_a_row_that_is_no_canary_is_refused(tmp_path, row, line):
    with pytest.raises(DataError, match=line):
        read_canaries(rows(tmp_path / "c.jsonl", [row]))


def test_the_command_prints_a_table_and_strict_tells_by_its_exit_code(tmp_path):
    folder = str(save_tiny(tmp_path / "llm"))
    result = CliRunner().invoke(app, ["model", folder], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "logit_svd" in result.stdout
    assert CliRunner().invoke(app, ["model", folder, "--strict"]).exit_code == 1
    refused = CliRunner().invoke(app, ["model", folder, "--suite", "huge"])
    assert refused.exit_code == 2
    assert "--suite huge" in refused.stderr
