"""The commands `provision`, `privacy` and `selftest`: clients' keys, what their privacy takes, attacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.cli.options import ConfigArgument, SetOption, find_config
from fedproxy_secure.config import load_config
from fedproxy_secure.errors import ConfigError, FedProxyError

if TYPE_CHECKING:
    from fedproxy_secure.dp.planning import PrivacyPlan


def provision(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the keys; must hold none.")] = Path(
        "keys"
    ),
    changes: SetOption = None,
) -> None:
    """Make the roster and, for each client, a private key, its journal and its policy.

    The keys serve federations on this machine: use them with `--set protect.keys=DIR`. Without this
    setting, `run` makes fresh keys every time. Change the same settings here as in the run: the policies
    refuse a run whose seed, training, fusion, protection or privacy differs from them.

    A journal records what was answered with its key, and must stay beside the key. A policy,
    NAME.policy.yaml, lists everything that a server may ask of that client. If clients are on machines of
    their own, use `deploy` instead: each site makes its own keys.

    Example: `fedproxy-secure provision quickstart --out keys`
    """
    with plain_errors(again=None):
        from fedproxy_secure.federate.client_policy import POLICY, check_sound, policy_for
        from fedproxy_secure.federate.job import FederationJob
        from fedproxy_secure.secagg.provision import check_unused
        from fedproxy_secure.secagg.provision import provision as make_keys

        settings = load_config(find_config(config), changes or [])
        settings.check_epsilon()
        clients = settings.data.clients
        protect = settings.protect.model_copy(update={"keys": str(out.resolve())})
        privacy = settings.privacy
        if privacy.unit != "none" and privacy.ledger is None:
            privacy = privacy.model_copy(update={"ledger": str(out.resolve())})
        settings = settings.model_copy(update={"protect": protect, "privacy": privacy})
        job = FederationJob.from_config(settings, seed=settings.seeds[0])
        policies = [policy_for(job, index, seeds=settings.seeds) for index in range(len(clients))]
        for policy in policies:
            check_sound(policy)  # before there are keys: no client would load another
        check_unused(out)
        for client, policy in zip(clients, policies, strict=True):
            policy.write(out / f"{client.name}{POLICY}")  # first: another call may write them again
        roster = make_keys([c.name for c in clients], out)
        typer.echo(f"keys, journals and policies of {len(roster.members)} clients, and the roster: {out}")


def privacy(
    config: ConfigArgument,
    records: Annotated[int, typer.Option(min=2, metavar="N", help="Training records of a client.")],
    set_: SetOption = None,
    trainings: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trainings on the same records, such as seeds.")
    ] = 1,
    of_one_person: Annotated[
        int, typer.Option(min=1, metavar="N", help="Records that one person may have.")
    ] = 1,
    numbers: Annotated[
        int, typer.Option(min=1, metavar="N", help="Trained numbers, as `run --dry-run` prints them.")
    ] = 10_000,
) -> None:
    """Say what record-level differential privacy takes and allows, without records or a model.

    Of the settings CONFIG only the sections `local`, `federate` and `privacy` are read; `privacy.unit` is
    taken as `record`. Needs the extra `dp`.

    Example: `fedproxy-secure privacy demo_private --records 8000 --set privacy.target_epsilon=4`
    """
    with plain_errors(again=None):
        from fedproxy_secure.dp.planning import plan_privacy

        settings = load_config(find_config(config), set_ or [])
        if settings.privacy.unit == "client":
            raise ConfigError("privacy.unit=client: its noise depends on the cohort; see `run --dry-run`")
        plan = plan_privacy(
            settings.privacy,
            settings.local,
            rounds=settings.federate.rounds,
            records=records,
            trainings=trainings,
            person_records=of_one_person,
        )
        rows = privacy_rows(plan, numbers)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            typer.echo(f"{name:<{width}}  {value}")


def privacy_rows(plan: PrivacyPlan, numbers: int) -> list[tuple[str, str]]:
    """Return the lines that are printed, as names and values; what privacy costs at most is rounded up."""
    from fedproxy_secure.dp.guarantees import rounded_up

    rate, share, epsilon = plan.noise.sampling_rate, 100 * plan.rate, rounded_up(plan.epsilon)
    noised = f"with {numbers:,} trained numbers; a mean gradient has about 1 at most"
    rows = [
        ("steps", f"{plan.steps} of {plan.batch_size} records, each drawn with probability {rate:.3g}"),
        ("disclosed", f"that there are {plan.public_size // 2 + 1:,} to {plan.public_size:,} records"),
        ("noise multiplier", f"{plan.noise.noise_multiplier:.3g} (clip norm {plan.noise.clip_norm:g})"),
        ("noise of a step", f"{plan.noise_norm(numbers):.2g} clips long, {noised}"),
        ("epsilon", f"{epsilon} at delta {plan.delta:g}, of one record, in one training"),
    ]
    if plan.trainings > 1:
        epsilon = rounded_up(plan.all_epsilon)
        rows.append(("all trainings", f"epsilon {epsilon} for {plan.trainings} of them"))
    if plan.person_records > 1:
        epsilon = rounded_up(plan.person_epsilon, digits=3)
        about = f"epsilon about {epsilon} for {plan.person_records} records"
        rows.append(("one person", f"{about}, as of a Gaussian mechanism with this epsilon"))
    most = f"AUC at most {rounded_up(plan.auc, digits=3)}; at most {rounded_up(share, digits=3)} %"
    best = f"{most} of members found at 1 % false positives"
    return [*rows, ("best attack", f"on one record: {best}")]


def selftest() -> None:
    """Attack this installation: show which attacks its checks stop, and which are known limits.

    Every attack must fail, except known limits (marked `--`). An attack that a check stops is repeated
    against a party without that check, where it must succeed.

    First the masking protocol alone is attacked. Then servers, proxies, Sybils and clients deviate, over
    Flower messages in this process, with two blocks of the demo LLM. This takes about half a minute in
    total. A line with `--` names an attack that no check here stops, and what bounds its damage.

    Exit code 2: an attack succeeded, or one that must succeed did not.
    """
    with plain_errors(again=None):
        from fedproxy_secure.secagg.selftest.attempts import Finding, findings

        counts = {"ok ": 0, "-- ": 0, "BAD": 0}

        def show(finding: Finding) -> None:
            mark = "BAD" if not finding.ok else "-- " if finding.limit else "ok "
            counts[mark] += 1
            typer.echo(f"{mark}  {finding.adversary}: {finding.attempt}: {finding.found}")

        for finding in findings():
            show(finding)
        from fedproxy_secure.flower.selftest import findings as over_flower

        for finding in over_flower():
            show(finding)
        typer.echo(f"{counts['ok ']} attempts ended as expected, {counts['-- ']} known limits (--)")
        if counts["BAD"]:
            raise FedProxyError(f"{counts['BAD']} of the attempts above did not end as expected")
