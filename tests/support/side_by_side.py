"""Attacked configurations with and without protections, and reports of them."""

from dataclasses import replace

import numpy as np

from attacks.judging.measured import plain
from attacks.statistics import auc_estimate
from fedproxy_secure.evidence.detectable import Detectable
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.targets import Targets
from fedproxy_secure.report.protections.side_by_side import side_by_side
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.trilemma import Configuration

LABELS = np.arange(200) < 100


RECORDS = np.random.default_rng(5).normal(size=200)  # how hard each record is, whatever the protection


SECRET = {"measures": {"canary_exposure_bits": ()}}


NO_NUMBER = {
    "estimates": (),
    "detectable": (),
    "targets": None,
    "outcome": Outcome.NOT_APPLICABLE,
    "reason": "no canaries",
}


def finding(attack, shift, *, view="client", read=("MOD",), seed=0, exam="e", **changes):
    """An attack on the same 200 records; `shift`: how far members stand out."""
    own = np.random.default_rng([seed, int(100 * shift)]).normal(size=200)
    estimate = auc_estimate(RECORDS + own + shift * LABELS, LABELS, metric="auc")
    made = Finding(
        attack=attack,
        id=f"X{len(attack)}",
        title="an attack",
        view=view,
        surfaces=("AGG", "IND", "MOD"),
        seed_folder=f"seed-{seed}",
        profile="smoke",
        outcome=Outcome.SUCCEEDED if estimate.low > 0.55 else Outcome.RESISTED,
        reason="because",
        estimates=(replace(plain(estimate), seeds=(seed,)),),
        measures={"membership_auc": (0,)},
        positive=None,
        negative=None,
        seconds=1.0,
        seed=seed,
        mapping=(),
        read=read,
        chance=0.5,
        margin=0.05,
        detectable=(
            Detectable(metric="auc", unit="AUC", bar=0.55, smallest=0.648, how="100 there, 100 not"),
        ),
        targets=Targets(exam=exam, **estimate.judged._asdict()),
    )
    return replace(made, **changes)


def configuration(name, scheme, *findings, private=False, recipe="", ratio="0.5"):
    return Configuration(
        name=name,
        scheme=scheme,
        recipe=recipe,
        settings={"protection": scheme, "remove_ratio": ratio},
        seeds=(0,),
        findings=findings,
        privacy_unit="record" if private else "none",
    )


OPEN = (
    finding("from_update", 4.0, read=("IND", "MOD"), view="server", exam="one client's"),
    finding("from_sum", 2.0, read=("AGG", "MOD")),
    finding("from_model", 0.0),
    finding("secret", 3.0, **SECRET),
)


MASKED = (
    finding("from_update", 1.5, read=("AGG", "MOD"), view="server", exam="all clients'"),
    finding("from_sum", 1.9, read=("AGG", "MOD")),
    finding("from_model", 0.1),
    finding("secret", 2.9, **SECRET),
)


PRIVATE = (
    finding("from_update", 0.0, read=("AGG", "MOD"), view="server", exam="all clients'"),
    finding("from_sum", 0.2, read=("AGG", "MOD")),
    finding("from_model", 0.1),
    finding("secret", 0.0, **SECRET, **NO_NUMBER),
)


def three(plainly=OPEN, masked=MASKED, private=PRIVATE):
    """A matrix of no protection, masking, and masking with differential privacy."""
    return [
        configuration("open", "unsafe_plaintext", *plainly),
        configuration("masked", "masking", *masked),
        configuration("private", "masking", *private, private=True),
    ]


def report_of(configurations, known=()):
    shown, differences = side_by_side(configurations, known)
    return Report(
        name="made",
        command="c",
        config_sha256="5a" * 32,
        environment={},
        seeds=(0,),
        configurations=shown,
        attack_differences=differences,
    )


def of(report, attack, name):
    (found,) = (d for d in report.attack_differences if (d.attack, d.configuration) == (attack, name))
    return found
