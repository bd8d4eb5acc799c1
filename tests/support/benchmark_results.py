"""Results of the attack benchmark that tests write and read."""

from dataclasses import replace

from typer.testing import CliRunner

from attacks.benchmark.cli import app
from attacks.benchmark.identity import Identity
from attacks.benchmark.providers import AttackEntry
from attacks.benchmark.results import Benchmark, CellResult
from fedproxy_secure.evidence.estimate import Estimate
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.targets import Targets

CELL = "coded-lora-adamw-10x16-4clients-masking"


def identity(**changes):
    parts = {name: "5a" * 32 for name in ("settings_sha256", "world_sha256", "model_sha256")}
    made = Identity(version=1, **parts, profile="smoke", seconds=120.0, seed=0)
    return replace(made, **changes)


def finding(value=0.7, *, attack="lora_span_tokens", ranks=None, outcome=Outcome.SUCCEEDED, view="server"):
    number = Estimate(
        metric="auc",
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        n=9,
        unit="AUC",
        seeds=(0,),
        how="for the test",
        nature="sampled",
    )
    numbers = () if outcome in (Outcome.ERROR, Outcome.NOT_APPLICABLE) else (number,)
    return Finding(
        attack=attack,
        id="A2",
        title="tokens",
        view=view,
        surfaces=("MOD",),
        seed_folder="seed-0",
        profile="smoke",
        outcome=outcome,
        reason="because",
        estimates=numbers,
        measures={},
        positive=None,
        negative=None,
        seconds=1.25,
        seed=0,
        mapping=(),
        read=("MOD",),
        chance=0.5,
        margin=0.05,
        targets=ranks and Targets(exam="ab", kinds="110011", values=ranks),
    )


def results(*findings, name=CELL, failed=None, **changes):
    own = identity(**changes)
    names = list(dict.fromkeys(f.attack for f in findings))
    attacks = tuple(
        AttackEntry(
            name=n,
            id="A2",
            title="tokens",
            headline="auc",
            chance=0.5,
            provided_by="fedproxy-secure",
            provider_version="0.1.0",
            code_sha256="",
        )
        for n in names
    )
    cell = CellResult(
        benchmark_id=own.id,
        name=name,
        world="coded",
        adapter="lora",
        optimizer="adamw",
        steps=10,
        batch=16,
        clients=4,
        protection="masking",
        epsilon=None,
        views=("server",),
        attacks=attacks,
        seconds=1.0,
        failed=failed,
        findings=findings,
    )
    return Benchmark(
        benchmark_id=own.id,
        identity=own,
        model="demo",
        command="for the test",
        environment={"packages": {"fedproxy-secure": "0.1.0"}},
        attacks=attacks,
        cells=(cell,),
        attacks_left_out=(),
        cells_left_out=(),
        subset=False,
    )


def invoke(*words):
    return CliRunner().invoke(app, [str(w) for w in words])
