"""Secure aggregation's targets: `make bench-secagg`.

CPU times of one thread (of the server wall times: it uses all cores), in turns with the floor or the
peer (Flower's SecAgg+: its own functions in its own order). The largest sizes take minutes, nearly all of
them the peer's.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from fedproxy_secure.crypto.primitives import fresh_secret, keystream
from fedproxy_secure.secagg.masking.masks import add_masks
from fedproxy_secure.secagg.masking.server import ServerSession
from fedproxy_secure.secagg.messages import MaskedInput
from fedproxy_secure.secagg.ring import CHUNK_WORDS, RingPlan, Segment, quantise
from fedproxy_secure.secagg.selftest.rehearsal import SERVER, Cohort, identities, names, ring, terms_for
from tests.bench.rows import Row, publish

COMMAND = "make bench-secagg"
CLIP = 0.05
REPEATS = 3


def main() -> None:
    """Measure everything, print, write."""
    rows = [
        *client_rows(),
        *server_rows(),
        memory_row(),
        *bytes_rows(),
        *ckks_rows(),
        *gram_rows(),
        round_row(),
    ]
    publish("secagg", rows)


def gram_rows() -> list[Row]:
    """Weights `encrypted_gram` at 10^5 numbers: time and bytes for 4 and 16 clients, error of cosines."""
    from fedproxy_secure.secagg.ckks import products as ckks_gram
    from fedproxy_secure.secagg.sketch import SKETCH, count_sketch

    rows = []
    rng = np.random.default_rng(0)
    common = rng.normal(size=10**5)
    for clients in (4, 16):
        tau = [common + (i + 1) / 2 * rng.normal(size=10**5) for i in range(clients)]
        began = time.perf_counter()
        keys = ckks_gram.make_keys()
        sent = [ckks_gram.encrypt(keys.secret, count_sketch(u, b"bench")) for u in tau]
        mine = time.perf_counter() - began
        began = time.perf_counter()
        pairs = ckks_gram.products(keys.public, sent)
        server = time.perf_counter() - began
        unit = np.stack([u / np.linalg.norm(u) for u in tau])
        exact = unit @ unit.T
        wanted = exact[np.triu_indices(clients, 1)]
        error = ckks_gram.open_products(keys.secret, pairs) - wanted
        for metric, value, unit in (
            ("key and all sketches", mine, "s"),
            ("all products", server, "s"),
            ("a client's upload", len(sent[0]), "bytes"),
            ("the leader's upload besides", len(keys.public), "bytes"),
            ("a client's download", sum(map(len, pairs)), "bytes"),
            (f"rms error of a cosine (1/sqrt({SKETCH}) = .0156)", float(np.sqrt((error**2).mean())), ""),
        ):
            rows.append(
                Row(
                    metric=f"encrypted_gram, {clients} clients: {metric}",
                    value=value,
                    low=None,
                    high=None,
                    n=1,
                    unit=unit,
                    target="",
                    ok=None,
                    command=COMMAND,
                )
            )
    return rows


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def wall_seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ratios(slow: Callable[[], object], fast: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """CPU time of `slow` over that of `fast`, in turns after a warm-up."""
    slow(), fast()
    return [cpu_seconds(slow) / cpu_seconds(fast) for _ in range(repeats)]


def row(metric: str, values: list[float], target: str, ok: Callable[[float], bool], unit: str) -> Row:
    """Median, lowest, highest."""
    value = float(np.median(values))
    return Row(
        metric=metric,
        value=value,
        low=min(values),
        high=max(values),
        n=len(values),
        unit=unit,
        target=target,
        ok=ok(value),
        command=COMMAND,
    )


def client_rows(d: int = 10**7, clients: int = 16) -> list[Row]:
    """Quantise and mask: against the floor (key streams and one pass) and against Flower."""
    update = (np.random.default_rng(0).standard_normal(d) * 0.003).astype(np.float32)
    keys = [fresh_secret() for _ in range(clients)]
    made = []
    for bits, faster in ((32, 6.0), (16, 10.0)):
        plan = RingPlan(bits=bits, clients=clients, segments=(Segment(name="update", length=d, clip=CLIP),))

        def ours(plan: RingPlan = plan) -> None:
            words = quantise(plan, {"update": update}).words
            add_masks(words, plus=keys[:8], minus=keys[8:])

        def floor(plan: RingPlan = plan) -> None:
            size = CHUNK_WORDS * plan.bits // 8
            zeros, out = bytes(size), np.empty(size, dtype=np.uint8)
            scale, chunk = np.float32(plan.levels / CLIP), np.empty(CHUNK_WORDS, dtype=np.float32)
            words = np.empty(d, dtype=plan.word_type)
            for start in range(0, d, CHUNK_WORDS):
                part = update[start : start + CHUNK_WORDS]
                np.multiply(part, scale, out=chunk[: len(part)])
                np.copyto(words[start : start + len(part)], chunk[: len(part)], casting="unsafe")
            for key in keys:
                stream = keystream(key)
                for _ in range(0, d * plan.bits // 8, size):
                    stream.update_into(zeros, out.data)

        with np.errstate(invalid="ignore"):
            over_floor = ratios(ours, floor)
        name = f"client, d = 1e{round(np.log10(d))}, K = {clients}, {bits} bits"
        made.append(row(f"{name}: over the floor", over_floor, "<= 1.4", lambda v: v <= 1.4, "ratio"))
        faster_by = ratios(lambda: flower_client(update, clients), ours)
        made.append(
            row(
                f"{name}: Flower's SecAgg+ over ours",
                faster_by,
                f">= {faster:g}",
                lambda v, f=faster: v >= f,  # type: ignore[misc]
                "ratio",
            )
        )
    return made


def flower_client(update: np.ndarray, clients: int) -> None:
    """What `secaggplus_mod._collect_masked_vectors` does with a vector, 32-bit modulus as is usual."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_combine,
        parameters_addition,
        parameters_mod,
        parameters_multiply,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import quantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    vector = quantize(parameters_multiply([update], 1.0), CLIP, 2**22)
    vector = factor_combine(1, vector)
    shapes = [v.shape for v in vector]
    for i in range(clients):
        mask = pseudo_rand_gen(bytes([i]) * 32, 2**32, shapes)
        vector = parameters_addition(vector, mask) if i % 2 == 0 else parameters_subtraction(vector, mask)
    parameters_mod(vector, 2**32)


def server_rows() -> list[Row]:
    """Sum, reconstruct, unmask; with and without drop-outs. Wall time: ours unmasks on all cores."""
    made = []
    for d in (10**6, 10**7):
        for clients in (16, 32):
            for dropped in (0, clients // 4):
                messages = _recorded(d, clients, dropped)
                finish = partial(_finish, *messages)
                ours = float(np.median([wall_seconds(finish) for _ in range(REPEATS)]))
                peer = wall_seconds(partial(flower_server, d, clients, dropped))
                made.append(
                    row(
                        f"server (wall), d = 1e{round(np.log10(d))}, K = {clients}, {dropped} drop-outs: "
                        "Flower's SecAgg+ over ours",
                        [peer / ours],
                        ">= 15",
                        lambda v: v >= 15,
                        "ratio",
                    )
                )
                print(f"  d {d} K {clients} dropped {dropped}: ours {ours:.2f} s, Flower {peer:.2f} s")
    return made


def _recorded(d: int, clients: int, dropped: int) -> tuple[Cohort, list[tuple[str, object]]]:
    """All client messages of an honest round."""
    keys, roster = identities(clients)
    terms = terms_for(ring(clients, d, clip=CLIP), roster)
    kept: list[tuple[str, object]] = []

    def keep(at: str, _: str, message: object) -> object:
        if at.endswith("to server"):
            kept.append((at.split()[0], message))
        return message

    gone = set(names(clients)[:dropped])
    cohort = Cohort(terms=terms, keys=keys, roster=roster, tamper=keep, drops={"mask": gone})
    update = (np.random.default_rng(0).standard_normal(d) * 0.003).astype(np.float32)
    cohort.run(dict.fromkeys(names(clients), update))
    return cohort, kept


def _finish(cohort: Cohort, messages: list[tuple[str, object]]) -> None:
    session = ServerSession(terms=cohort.terms, roster=cohort.roster, private=SERVER)
    take = {
        "advertise": (session.advertised, session.key_book),
        "share": (session.shared, session.inboxes),
        "mask": (session.masked, session.survivors),
        "confirm": (session.confirmed, session.confirmations),
        "unmask": (session.unmasked, session.finish),
    }
    for step, (receive, close) in take.items():
        for at, message in messages:
            if at == step:
                receive(message)  # type: ignore[operator]
        close()  # type: ignore[operator]


def flower_server(d: int, clients: int, dropped: int) -> None:
    """What `SecAggPlusWorkflow` does: add the masked vectors, combine shares, take the masks off."""
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_extract,
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import dequantize
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, private_key_to_bytes

    threshold = 2 * clients // 3 + 1
    vector = [np.ones(1, dtype=np.int64), np.ones(d, dtype=np.int64)]
    shapes = [v.shape for v in vector]
    total = vector
    for _ in range(clients - dropped - 1):
        total = parameters_mod(parameters_addition(total, vector), 2**32)
    private, public = generate_key_pairs()
    shares = create_shares(private_key_to_bytes(private), threshold, clients)
    for client in range(clients):
        secret = combine_shares(shares[: clients - dropped])
        if client >= dropped:
            total = parameters_subtraction(total, pseudo_rand_gen(secret[:32], 2**32, shapes))
        else:
            for _ in range(clients - dropped):
                key = generate_shared_key(private, public)
                total = parameters_addition(total, pseudo_rand_gen(key, 2**32, shapes))
    _, recovered = factor_extract(parameters_mod(total, 2**32))
    dequantize(recovered, CLIP, 2**22)


def memory_row(d: int = 10**6) -> Row:
    """Peak memory of the server's session, in vectors of 4 d bytes, beside the message it holds."""
    peaks = {}
    for clients in (8, 16):
        cohort, messages = _recorded(d, clients, 0)
        tracemalloc.start()
        _finish(cohort, messages)
        peaks[clients] = tracemalloc.get_traced_memory()[1] / (4 * d)
        tracemalloc.stop()
    values = list(peaks.values())
    return replace(
        row(
            "server memory, d = 1e6, K = 8 and 16: vectors of d words",
            values,
            "<= 3, whatever K",
            lambda v: v <= 3,
            "vectors",
        ),
        value=max(values),
    )


def bytes_rows(d: int = 10**5, clients: int = 16) -> list[Row]:
    """A client's upload over the ring vector, and block fusion's over FedAvg's."""
    from fedproxy_secure.secagg.granularity import Layout, segments_of

    keys, roster = identities(clients)
    terms = terms_for(ring(clients, d), roster)
    sizes: list[int] = []

    def count(at: str, _: str, message: object) -> object:
        if isinstance(message, MaskedInput):
            sizes.append(len(message.masked) + len(message.tag) + len(message.client))
        return message

    Cohort(terms=terms, keys=keys, roster=roster, tamper=count).run(
        dict.fromkeys(names(clients), np.zeros(d, np.float32))
    )
    layout = Layout(sizes=tuple([2048, 5632] * (d // 7680)))
    words = {
        g: sum(s.length for s in segments_of(g, layout, clip=1.0, clients=clients, bits=32))
        for g in ("plain", "block", "coordinate")
    }
    return [
        row(
            "upload over the ring vector, d = 1e5, K = 16",
            [s / (4 * d) for s in sizes],
            "<= 1.01",
            lambda v: v <= 1.01,
            "ratio",
        ),
        row(
            "block fusion's bytes over FedAvg's",
            [words["block"] / words["plain"]],
            "<= 1.02",
            lambda v: v <= 1.02,
            "ratio",
        ),
        row(
            "coordinate fusion's bytes over FedAvg's",
            [words["coordinate"] / words["plain"]],
            "<= 2.5",
            lambda v: v <= 2.5,
            "ratio",
        ),
    ]


def ckks_rows(n: int = 10**5, clients: int = 16) -> list[Row]:
    """Bytes a number, error of a sum, and the time to encrypt against the [60, 40, 40] set."""
    import tenseal

    from fedproxy_secure.secagg.ckks import context as ckks

    keys = ckks.make_keys()
    rng = np.random.default_rng(0)
    vectors = [rng.normal(0, 0.01, n) for _ in range(clients)]
    encrypted = [ckks.encrypt(keys.public, v) for v in vectors]
    total = ckks.CkksSum(keys.public, n)
    for e in encrypted:
        total.add(e)
    error = float(np.abs(ckks.decrypt(keys.secret, total.packed(), n) - np.sum(vectors, axis=0)).max())
    others = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40])
    others.global_scale = 2**40

    def theirs() -> list[bytes]:
        parts = [vectors[0][i : i + ckks.SLOTS] for i in range(0, n, ckks.SLOTS)]
        return [tenseal.ckks_vector(others, part).serialize() for part in parts]

    size = sum(len(part) for part in theirs()) / n
    return [
        row(
            "CKKS: bytes a number, n = 1e5",
            [len(encrypted[0]) / n],
            "<= 33",
            lambda v: v <= 33,
            "bytes",
        ),
        row("CKKS: error of a sum of 16", [error], "< 1e-8", lambda v: v < 1e-8, "absolute"),
        row(
            "CKKS: bytes of the [60, 40, 40] set over ours",
            [size * n / len(encrypted[0])],
            "",
            lambda v: v >= 1,
            "ratio",
        ),
        row(
            "CKKS: time to encrypt with the [60, 40, 40] set over ours",
            ratios(theirs, lambda: ckks.encrypt(keys.public, vectors[0])),
            "",
            lambda v: v >= 1,
            "ratio",
        ),
    ]


def round_row(repeats: int = 5) -> Row:
    """Wall time of masked rounds over the same rounds in the clear, on the demo."""
    import torch

    from fedproxy_secure.config import Config, ProtectConfig
    from fedproxy_secure.federate.job import FederationJob
    from fedproxy_secure.federate.server import initial_state
    from fedproxy_secure.flower.engines import federate
    from fedproxy_secure.models.adapters import attach
    from fedproxy_secure.models.llm import demo_llm_folder, load_llm
    from tests.bench.rows import interleaved_ratio

    torch.set_num_threads(1)
    job = FederationJob.from_config(Config(), seed=0)
    job = job.changed(
        local=job.local.model_copy(update={"steps": 10}),
        federate=job.federate.model_copy(update={"rounds": 2}),
    )
    model, _ = load_llm(demo_llm_folder())
    initial = initial_state(attach(model, job.adapter, seed=0))
    clear = job.changed(protect=ProtectConfig(scheme="unsafe_plaintext"))
    value, low, high = interleaved_ratio(
        lambda: federate(job, demo_llm_folder(), initial),
        lambda: federate(clear, demo_llm_folder(), initial),
        repeats,
    )
    return Row(
        metric="masked rounds over rounds in the clear, demo, 10 steps a client",
        value=value,
        low=low,
        high=high,
        n=repeats,
        unit="ratio",
        target="<= 1.05",
        ok=value <= 1.05,
        command=COMMAND,
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
