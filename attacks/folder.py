"""Attacks on a model alone, without a recorded run: a Hugging Face folder, a GGUF file, or a known name.

The model takes the place of the API that an outsider queries (`view.api`). A6 tells which texts the model
was trained on, A7 how well it knows canaries, A12 its hidden size and, with a proxy, how much of the model
can be extracted. Texts come in two files: `members` may have been trained on, `others` were not. Both must
be drawn from the same source; otherwise the texts alone tell the two files apart, which the blind baseline
detects. Canaries come as rows of `prompt`, `secret` (4 digits, drawn at random) and `repeats` (1 by
default). The API returns all logits, unless `api` limits it as in a run's settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from attacks.base import Attack, Truth
from attacks.extraction.api import OPEN
from attacks.extraction.logits import LogitSvd
from attacks.extraction.proxy import ProxyExtraction
from attacks.membership.canaries import CanaryExposure
from attacks.membership.models import ModelMembership
from attacks.trial import run_one
from fedproxy_secure.config import ApiConfig
from fedproxy_secure.data.encode import Encoded, encode_records, prompt_ids
from fedproxy_secure.data.planted import SECRET_DIGITS, Canary
from fedproxy_secure.data.sources import read_rows
from fedproxy_secure.errors import ConfigError, DataError
from fedproxy_secure.evidence.finding import Finding, Profile
from fedproxy_secure.models.llm import Tokenizer, llm_folder, load_tokenizer
from fedproxy_secure.record.private import PrivateRound, PrivateState
from fedproxy_secure.record.view import View

OWNER = "folder"  # stands for the client's name
LONGEST_TEXT = 128  # the most tokens of a text; the rest is cut off
LEAST_MEMBERS, LEAST_OTHERS = 4, 5  # texts that A6 needs; it keeps a quarter of the others for calibration


def attack_folder(
    path: Path,
    *,
    members: Path | None = None,
    others: Path | None = None,
    canaries: Path | None = None,
    proxy: Path | None = None,
    api: ApiConfig = OPEN,
    profile: Profile = "smoke",
    seconds: float = 600.0,
    seed: int = 0,
) -> list[Finding]:
    """Run every attack that the given files allow; the search for the hidden size always runs.

    Args:
        path: the victim: a local Hugging Face folder, a `.gguf` file, or a name as in `model.path`.
        members, others: files of `text` (JSONL, CSV or Parquet), for A6; give both or neither.
        canaries: file of `prompt`, `secret` and optionally `repeats`, for A7.
        proxy: the smaller model that the adversary holds, for A12; named like the victim.
        api: what the victim's API answers, and how often.
        profile: how much to spend: `smoke`, `standard` or `full`.
        seconds: the most that one attack may take, its controls included.
        seed: seed of the attacks' own randomness.

    Raises `ConfigError`, `DataError` or `ModelError` in one line for files that cannot be used.
    """
    if profile not in get_args(Profile):
        raise ConfigError(f"profile={profile}: must be {', '.join(get_args(Profile))}")
    if (members is None) != (others is None):
        raise ConfigError("members, others: only one is given; A6 needs both, to compare them")
    victim = llm_folder(path)
    proxy_folder = None if proxy is None else llm_folder(proxy)
    tokenizer = load_tokenizer(victim)
    if proxy_folder is not None:
        _check_same_tokens(tokenizer, load_tokenizer(proxy_folder), proxy_folder)
    truth = Truth(clients={OWNER: _owner(members, others, canaries, tokenizer)})
    if members is not None:
        _check_enough(truth, canaries=canaries)
    seen = View(
        threat_model="api_user" if proxy_folder is None else "client",
        settings=None,
        adapters={}
        if proxy_folder is None
        else {0: np.zeros(0, dtype=np.float32)},  # the proxy without tuning
        proxy=proxy_folder,
        api=victim,
        api_policy=api,
    )
    no_truth = Truth(clients={})  # extraction is judged on texts of its own
    chosen: list[tuple[Attack, Truth]] = []
    chosen += [(ModelMembership(), truth)] if members is not None else []
    chosen += [(CanaryExposure(), truth)] if canaries is not None else []
    chosen += [(LogitSvd(), no_truth)]
    chosen += [(ProxyExtraction(), no_truth)] if proxy_folder is not None else []
    return [
        run_one(
            one,
            seen,
            known,
            profile=profile,
            seconds=seconds,
            seed=seed,
            name=path.name,
        )
        for one, known in chosen
    ]


def _check_enough(truth: Truth, *, canaries: Path | None) -> None:
    """Raise `DataError` unless A6 can ask about some members and as many others."""
    state = truth.clients[OWNER]
    members = len(state.own_drawn())
    apart = len(truth.nonmembers(OWNER))
    if members < LEAST_MEMBERS or apart < LEAST_OTHERS:
        planted = " or canaries" if canaries is not None else ""
        raise DataError(
            f"members, others: have {members} and {len(state.holdout)} texts, {apart} of the others not "
            f"among the members{planted}; must be >= {LEAST_MEMBERS} and >= {LEAST_OTHERS}; give more "
            "texts, each in one of the files"
        )


def read_canaries(file: Path) -> tuple[Canary, ...]:
    """Read the canaries in a file, in order. Raises `DataError` for a row that is no canary."""
    canaries = []
    for number, row in enumerate(read_rows(str(file), "all", root=None, limit=None), start=1):
        secret = str(row.get("secret", ""))
        if not isinstance(row.get("prompt"), str) or not row["prompt"]:
            raise DataError(f"{file}, row {number}: must have a prompt")
        if len(secret) != SECRET_DIGITS or not secret.isdecimal():
            raise DataError(f"{file}, row {number}: secret: must be {SECRET_DIGITS} digits")
        repeats = row.get("repeats", 1)
        if not isinstance(repeats, int) or repeats < 1:
            raise DataError(f"{file}, row {number}: repeats={repeats!r}: must be an integer >= 1")
        canaries.append(Canary(prompt=row["prompt"], secret=secret, repeats=repeats))
    if not canaries:
        raise DataError(f"{file}: holds no canaries")
    return tuple(canaries)


def _owner(
    members: Path | None, others: Path | None, canaries: Path | None, tokenizer: Tokenizer
) -> PrivateState:
    """Return the files as one client's state: trained once on all members and on the canaries."""
    train = _texts(members, tokenizer)
    planted = () if canaries is None else read_canaries(canaries)
    records = [c.record() for c in planted for _ in range(c.repeats)]
    encoded = encode_records(records, tokenizer, max_tokens=LONGEST_TEXT).items
    used = PrivateRound(update=np.zeros(1, dtype=np.float32), used=np.arange(len(train)))
    return PrivateState(
        client=OWNER,
        train=(*train, *encoded),
        holdout=_texts(others, tokenizer),
        canaries=planted,
        rounds={0: used},
    )


def _texts(file: Path | None, tokenizer: Tokenizer) -> tuple[Encoded, ...]:
    """Read the texts in a file, cut to `LONGEST_TEXT`; every token but the first counts as response."""
    if file is None:
        return ()
    texts = []
    for number, row in enumerate(read_rows(str(file), "all", root=None, limit=None), start=1):
        if not isinstance(row.get("text"), str):
            raise DataError(f"{file}, row {number}: must have a text")
        ids = prompt_ids(row["text"], tokenizer)[:LONGEST_TEXT]
        if len(ids) < 3:
            raise DataError(f"{file}, row {number}: its text has {len(ids)} tokens; must have >= 3")
        texts.append(Encoded(ids=tuple(ids), response_start=1))
    return tuple(texts)


def _check_same_tokens(victim: Tokenizer, proxy: Tokenizer, folder: Path) -> None:
    expected, held = victim.get_vocab(), proxy.get_vocab()
    if expected != held:
        raise ConfigError(
            f"proxy {folder}: its vocabulary of {len(held)} tokens is not the victim's of {len(expected)}; "
            "both must be the same"
        )
