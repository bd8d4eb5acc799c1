"""What a run left on disk becomes measures with n, interval, seeds and a source."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedproxy_secure.config import parse_config
from fedproxy_secure.dp.guarantees import NOT_COVERED, SCORED, guarantees
from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.evidence.estimate import counted, proportion_interval
from fedproxy_secure.evidence.finding import Finding, Outcome
from fedproxy_secure.evidence.losses import TextLoss
from fedproxy_secure.evidence.measures.ip import PROXY_KL_NATS
from fedproxy_secure.report.measured import (
    configuration_of,
    cost_against,
    lacking_on_some_seed,
    read_seed,
    without_gap,
)
from fedproxy_secure.report.measured.joining import exact_or_mean
from fedproxy_secure.report.stamps import unsafe_stamps
from fedproxy_secure.secagg import messages
from fedproxy_secure.secagg.ckks import messages as ckks
from fedproxy_secure.secagg.ckks.gram import EncryptedSketch, GramProducts
from tests.support.finished_run import FIDELITY, write_run


def finding(
    attack: str,
    id_: str,
    metric: str,
    hits: int,
    *,
    seed: int,
    outcome: Outcome,
    measure: str = "token_auc",
) -> Finding:
    return Finding(
        attack=attack,
        id=id_,
        title="an attack",
        view="server",
        surfaces=("AGG",),
        seed_folder=f"seed-{seed}",
        profile="smoke",
        outcome=outcome,
        reason="because",
        estimates=(proportion_interval(hits, 10, metric=metric, seeds=(seed,)),),
        measures={measure: (0,) if metric == "auc" else ()},
        positive=None,
        negative=None,
        seconds=1.0,
        seed=seed,
        mapping=(),
        read=("AGG",),
        chance=0.5,
        margin=0.05,
    )


CEILING = {"a": [True] * 4, "b": [True] * 4}


def made(folder: Path, root: Path, seeds: tuple[int, ...], **raw):
    config = parse_config(raw)
    read = [read_seed(folder, s, root=root, ceiling=CEILING) for s in seeds]
    return configuration_of(read, config, name="c", settings={})


def test_accuracy_gap_and_edge_are_those_of_the_answers(tmp_path: Path):
    configuration = made(write_run(tmp_path / "run", seeds=(0, 1)), tmp_path, (0, 1))
    fused = configuration.measure("accuracy_fused").estimate
    assert fused.value == pytest.approx((0.75 + 0.625) / 2)
    assert (fused.n, fused.seeds) == (2, (0, 1))
    gap = configuration.measure("gap_closed").estimate
    assert gap.value == pytest.approx(((0.75 - 0.25) / 0.75 + (0.625 - 0.25) / 0.75) / 2)
    assert without_gap([configuration]) == []
    edge = configuration.measure("owners_edge").estimate
    assert edge.value == pytest.approx((0.75 + 0.625) / 2 - 0.5)


def test_no_gap_is_told_where_centralised_tuning_is_worse_than_none(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(CEILING, "a", [False] * 4)
    monkeypatch.setitem(CEILING, "b", [False] * 4)
    configuration = made(write_run(tmp_path / "run", seeds=(0,)), tmp_path, (0,))
    assert configuration.measure("accuracy_centralised") is not None
    assert configuration.measure("gap_closed") is None
    (line,) = without_gap([configuration])
    assert line.startswith("gap_closed of c: the LLM tuned on all records together is not better")


@pytest.mark.parametrize(("ceiling", "told"), [(1.0, True), (2.9, False), (5.0, False)])
def test_a_gap_closed_by_loss_is_told_where_it_is_resolved_and_else_a_line_says_why(
    tmp_path: Path, ceiling, told
):
    file = write_run(tmp_path / "run", seeds=(0,)) / "seed-0" / "result.json"
    rng = np.random.default_rng(0)

    def lost(mean: float) -> TextLoss:
        return TextLoss(nats=tuple(rng.gamma(20, mean / 20, 20).tolist()), tokens=(1,) * 20)

    nats = {"zero_shot": 3.0, "proxy": 4.0, "tuned": 2.5, "fused": 2.0}
    losses = {f"{model}_loss": {"n": lost(mean).to_json()} for model, mean in nats.items()}
    file.write_text(json.dumps({**json.loads(file.read_text()), **losses}))
    seed = read_seed(
        tmp_path / "run", 0, root=tmp_path, ceiling=CEILING, ceiling_losses={"n": lost(ceiling)}
    )
    configuration = configuration_of([seed], parse_config({}), name="c", settings={})
    assert configuration.measure("loss_centralised") is not None
    assert (configuration.measure("loss_gap_closed") is not None) == told
    lines = without_gap([configuration])
    assert [line.partition(":")[0] for line in lines] == ([] if told else ["loss_gap_closed of c"])


@pytest.mark.parametrize("answers", [{"a": "01x1", "b": "0101"}, {"a": ""}, {"a": [1, 0]}, "0101", None])
def test_answers_that_are_damaged_are_refused_and_not_counted_as_wrong(tmp_path: Path, answers):
    file = write_run(tmp_path / "run", seeds=(0,)) / "seed-0" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fused": answers}))
    with pytest.raises(RunFolderError, match=r"^run/seed-0/result\.json: fused: is damaged"):
        made(tmp_path / "run", tmp_path, (0,))


def test_one_seed_has_an_interval_over_its_records(tmp_path: Path):
    fused = made(write_run(tmp_path / "run", seeds=(0,)), tmp_path, (0,)).measure("accuracy_fused").estimate
    assert fused.n == 8
    assert fused.low < fused.value <= fused.high


def test_bytes_are_counted_a_client_and_round_and_payload_apart_from_protocol(tmp_path: Path):
    configuration = made(write_run(tmp_path / "run", seeds=(0, 1)), tmp_path, (0, 1))
    values = {m.key: m.estimate for m in configuration.measures if m.axis == "cost"}
    assert values["upload_bytes"].value == (330 + 30) / 3
    assert values["download_bytes"].value == 300 / 3
    assert values["protocol_bytes"].value == 30 / 3
    assert values["upload_bytes"].how == "counted, exact"
    peak = values["peak_memory_bytes"]
    assert (peak.value, peak.exact) == (100, False), "it was measured, and both seeds agree"
    assert values["seconds_federate"].value == 3.0
    assert values["seconds_total"].value == 3.0


def test_only_messages_without_numbers_of_updates_are_protocol():
    kinds: tuple[type[messages.Message], ...] = (
        *messages.MESSAGES,
        *ckks.MESSAGES,
        EncryptedSketch,
        GramProducts,
    )
    vectors = {"MaskedInput", "Encrypted", "Total", "Opened", "EncryptedSketch", "GramProducts"}
    assert {kind.__name__ for kind in kinds if kind.vector} == vectors


def test_the_worst_attack_counts_whatever_its_outcome_but_not_one_that_raised(tmp_path: Path):
    findings = (
        finding("lora_span_tokens", "A2", "auc", 7, seed=0, outcome=Outcome.INCONCLUSIVE),
        finding("embedding_bow", "A1", "auc", 6, seed=0, outcome=Outcome.SUCCEEDED),
        finding("embedding_bow", "A1", "auc", 9, seed=0, outcome=Outcome.ERROR),
        finding(
            "model_membership",
            "A6",
            "blind baseline, AUC",
            10,
            seed=0,
            outcome=Outcome.RESISTED,
            measure="membership_auc",
        ),
    )
    configuration = made(write_run(tmp_path / "run", seeds=(0,), findings=findings), tmp_path, (0,))
    worst = configuration.measure("token_auc")
    assert worst.estimate.value == 0.7
    assert worst.source == "run/attacks/results.json#lora_span_tokens from server"
    assert "worst of A1, A2" in worst.estimate.how
    assert configuration.measure("membership_auc") is None


def test_the_worst_of_several_has_a_low_end_that_counts_them(tmp_path: Path):
    """The largest of m numbers is above its truth more often than each of them is."""

    def low_end(*hits):
        findings = tuple(
            finding(f"attack_{i}", "A2", "auc", h, seed=0, outcome=Outcome.RESISTED)
            for i, h in enumerate(hits)
        )
        folder = write_run(tmp_path / f"run{len(hits)}", seeds=(0,), findings=findings)
        return made(folder, tmp_path, (0,)).measure("token_auc").estimate

    alone, of_five = low_end(7), low_end(7, 5, 5, 5, 5)
    assert (alone.value, of_five.value) == (0.7, 0.7)
    ratio = (0.7 - of_five.low) / (0.7 - alone.low)
    assert ratio == pytest.approx(2.576 / 1.960, abs=1e-3)  # quantiles at .5 % and at 2.5 %
    assert of_five.high == alone.high
    assert "; better end for the worst of 5; the worst of A2" in of_five.how
    assert "better end" not in alone.how


def test_an_exposure_that_is_the_worst_of_several_stays_among_the_possible_ones(tmp_path: Path):
    """The least exposure is that of the last rank among the references, log2(128 / 129)."""
    findings = []
    for times, bits in enumerate((1.76, 1.0, 0.5)):
        one = finding(f"attack_{times}", "A7", "auc", 5, seed=0, outcome=Outcome.RESISTED)
        number = replace(one.estimates[0], value=bits, low=-0.011, high=6.2, unit="bits")
        findings.append(replace(one, estimates=(number,), measures={"canary_exposure_bits": (0,)}))
    folder = write_run(tmp_path / "run", seeds=(0,), findings=tuple(findings))
    worst = made(folder, tmp_path, (0,)).measure("canary_exposure_bits").estimate
    assert "better end for the worst of 3" in worst.how
    assert worst.low == pytest.approx(math.log2(128 / 129))


def test_the_interval_of_a_number_of_the_run_stays_among_its_possible_values():
    estimate = exact_or_mean({0: 0.001, 1: 0.009}, PROXY_KL_NATS)
    assert (estimate.low, estimate.high > 0.009) == (0.0, True)


def test_over_seeds_the_wider_interval_is_told_where_it_is_the_seeds_own(tmp_path: Path):
    findings = tuple(
        finding(f"attack_{i}", "A2", "auc", hits, seed=seed, outcome=Outcome.RESISTED)
        for seed in (0, 1)
        for i, hits in enumerate((7, 5, 5))
    )
    folder = write_run(tmp_path / "run", seeds=(0, 1), findings=findings)
    how = made(folder, tmp_path, (0, 1)).measure("token_auc").estimate.how
    assert "as wide as a seed's own; better end for the worst of 3; the worst of A2" in how


def test_of_lower_bounds_the_smallest_is_told_not_their_mean(tmp_path: Path):
    """Each is a bound at 95 %, so the smallest is one; a mean of bounds is none."""
    bounds = {0: 1.5, 1: 0.5, 2: 2.0}
    findings = []
    for seed, bound in bounds.items():
        one = finding("dp_audit", "A8", "auc", 5, seed=seed, outcome=Outcome.RESISTED)
        number = counted(bound, metric="audited epsilon", unit="epsilon", seeds=(0,))
        findings.append(replace(one, estimates=(number,), measures={"epsilon_audited": (0,)}))
    seeds = []
    for seed, one in zip(bounds, findings, strict=True):  # each in a run of its own, as of a matrix
        folder = write_run(tmp_path / f"run{seed}", seeds=(seed,), findings=(one,))
        seeds.append(read_seed(folder, seed, root=tmp_path))
    measure = configuration_of(seeds, parse_config({}), name="m", settings={}).measure("epsilon_audited")
    told = measure.estimate
    assert (told.value, told.low, told.high, told.seeds) == (0.5, 0.5, 0.5, (0, 1, 2))
    assert "the smallest of 3 seeds'" in told.how
    assert measure.source == "run1/attacks/results.json#dp_audit from server"


def test_a_number_that_one_seed_lacks_is_left_out(tmp_path: Path):
    findings = (finding("lora_span_tokens", "A2", "auc", 7, seed=0, outcome=Outcome.RESISTED),)
    folder = write_run(tmp_path / "run", seeds=(0, 1), findings=findings)
    assert made(folder, tmp_path, (0, 1)).measure("token_auc") is None


def test_a_measure_that_a_seed_lacks_is_named_with_the_seed(tmp_path: Path):
    found = finding("lora_span_tokens", "A2", "auc", 7, seed=0, outcome=Outcome.RESISTED)
    failed = finding("lora_span_tokens", "A2", "auc", 7, seed=1, outcome=Outcome.ERROR)
    folder = write_run(tmp_path / "run", seeds=(0, 1), findings=(found, failed))
    (line,) = lacking_on_some_seed([made(folder, tmp_path, (0, 1))])
    assert line.startswith("token_auc of c: no attack has a number of it with seed 1")
    assert lacking_on_some_seed([made(folder, tmp_path, (0,))]) == []


def test_the_perplexity_of_a_model_that_diverged_is_named_and_not_only_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "run", seeds=(0, 1))
    file = folder / "seed-1" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "perplexity": {"fused": None, "tuned": 9}}))
    configuration = made(folder, tmp_path, (0, 1))
    assert configuration.measure("perplexity_after") is None
    (line,) = lacking_on_some_seed([configuration])
    assert line.startswith("perplexity_after of c: the fused LLM of a seed has diverged")


def test_a_private_report_says_that_scores_of_attacks_are_outside_its_epsilon(tmp_path: Path):
    found = (finding("a", "A1", "auc", 5, seed=0, outcome=Outcome.RESISTED),)
    attacked = write_run(tmp_path / "attacked", seeds=(0,), findings=found)
    bare = write_run(tmp_path / "bare", seeds=(0,))
    private = {"privacy": {"unit": "record", "target_epsilon": 8}}
    assert SCORED in made(attacked, tmp_path, (0,), **private).guarantees
    assert SCORED not in made(bare, tmp_path, (0,), **private).guarantees
    assert made(attacked, tmp_path, (0,)).guarantees == ()
    said = guarantees("record", epsilon=8, delta=1e-5, clip_norm=1, mechanism="skellam", simulated=False)
    assert "Not covered: the attacks' scores in this report" in " ".join(said)
    assert "scores of attacks and their n" in NOT_COVERED


def test_the_cohort_of_the_clear_is_one_and_that_of_masking_lacks_the_colluders(tmp_path: Path):
    folder = write_run(tmp_path / "run", seeds=(0,))
    clear = made(folder, tmp_path, (0,), protect={"scheme": "unsafe_plaintext"})
    masked = made(folder, tmp_path, (0,), protect={"colluders": 1})
    assert clear.measure("effective_cohort").estimate.value == 1
    assert masked.measure("effective_cohort").estimate.value == 2
    assert clear.unsafe == ("unsafe_plaintext: the server sees every client's update.",)
    assert masked.unsafe == ()


def test_simulated_noise_is_stamped_and_marked():
    config = parse_config({"privacy": {"unit": "record", "randomness": "unsafe_simulated"}})
    assert "nothing is private" in unsafe_stamps(config)[0]
    assert configuration_of([], config, name="c", settings={}).simulated_noise
    drawn = parse_config({"privacy": {"unit": "record"}})
    assert not configuration_of([], drawn, name="c", settings={}).simulated_noise


def test_every_measure_says_where_it_came_from_and_what_it_rests_on(tmp_path: Path):
    configuration = made(write_run(tmp_path / "run", seeds=(0, 1)), tmp_path, (0, 1))
    assert {m.axis for m in configuration.measures} == {"performance", "privacy", "ip", "cost"}
    for m in configuration.measures:
        file, _, part = m.source.partition("#")
        assert part
        assert (tmp_path / file).exists() or file.endswith("config.yaml"), m.source
        assert m.estimate.n >= 1
        assert m.estimate.seeds == (0, 1)
    assert len({m.key for m in configuration.measures}) == len(configuration.measures)


def test_curves_and_ledger_join_rounds_and_seeds(tmp_path: Path):
    configuration = made(write_run(tmp_path / "run", seeds=(0, 1)), tmp_path, (0, 1))
    loss = next(c for c in configuration.curves if c.key == "loss")
    assert [(r, e.value, e.n) for r, e in loss.points] == [(0, 2.0, 2), (1, 1.0, 2)]
    rows = {r.message: r for r in configuration.ledger}
    assert (rows["MaskedInput"].count, rows["MaskedInput"].payload_bytes) == (12, 1320)
    assert rows["Proxy"].payload_bytes == 18000


def test_costs_stand_beside_those_of_the_unprotected_run_seed_by_seed(tmp_path: Path):
    mine, base = (write_run(tmp_path / name, seeds=(0, 1)) for name in ("mine", "base"))
    lines = (base / "seed-0/federation/ledger.jsonl").read_text().replace('"bytes": 330', '"bytes": 150')
    for seed in (0, 1):
        (base / f"seed-{seed}/federation/ledger.jsonl").write_text(lines)
    read = [[read_seed(f, s, root=tmp_path) for s in (0, 1)] for f in (mine, base)]
    upload, seconds = (m.estimate for m in cost_against(*read))
    assert (upload.value, upload.n) == (2.0, 2)
    assert seconds.value == 1.0
    assert cost_against(read[0], []) == ()


def test_an_unfinished_seed_is_named(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"seed-0/result\.json: cannot be read"):
        read_seed(tmp_path, 0, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"verbatim_share": None}, "verbatim_share is None"),
        ({"fidelity": {**FIDELITY, "kl_nats": "low"}}, r"fidelity\.kl_nats is 'low'"),
        ({"fidelity": {}}, r"fidelity\.kl_nats is missing"),
        ({"plug_back": []}, "plug_back is no object"),
        ({"seconds": {"fuse": "long"}}, r"seconds\.fuse is 'long'"),
        ({"healing": {"tokens": 1}}, r"healing\.seconds is missing"),
    ],
)
def test_a_damaged_result_is_told_in_one_line(tmp_path: Path, change, told):
    file = write_run(tmp_path / "run", seeds=(0,)) / "seed-0/result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunFolderError, match=rf"result\.json: is damaged: {told}; delete it and resume$"):
        made(tmp_path / "run", tmp_path, (0,))


@pytest.mark.parametrize(
    "name", ["verbatim_share", "plug_back", "seconds", "peak_memory_bytes", "truncated"]
)
def test_a_result_that_lacks_a_number_is_damaged(tmp_path: Path, name):
    file = write_run(tmp_path / "run", seeds=(0,)) / "seed-0/result.json"
    result = json.loads(file.read_text())
    del result[name]
    file.write_text(json.dumps(result))
    with pytest.raises(RunFolderError, match=rf"is damaged: {name} is missing; delete it and resume$"):
        made(tmp_path / "run", tmp_path, (0,))


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "has no lines"), ("", "has no lines"), ("{}\n", "\\w+ is missing"), ("7\n", "the whole is no")],
)
@pytest.mark.parametrize("name", ["rounds", "ledger"])
def test_a_seed_without_its_rounds_or_its_ledger_is_refused(tmp_path: Path, name, text, told):
    file = write_run(tmp_path / "run", seeds=(0,)) / f"seed-0/federation/{name}.jsonl"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(
        RunFolderError, match=rf"{name}\.jsonl: is damaged: {told}.*; put it back, or delete"
    ):
        made(tmp_path / "run", tmp_path, (0,))
