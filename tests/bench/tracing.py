"""Traitor tracing: who is accused, wrongly or rightly, of copies that one to three of 20 clients made.

python -m tests.bench.tracing [--parts harm thieves collude real] [--runs 1000] [--thieves 20] [--seed 0]

harm      what the marks of a copy do to its perplexity
thieves   each tunes all parameters of its own copy for 100 steps
collude   each run draws a new key, 20 clients' copies and the colluders, who join their marked rows as
          the attack says; then the rows are moved as 100 steps at 1e-3 moved unmarked ones here
real      `harm` and `thieves` on the proxy of SmolLM2-135M; minutes for each thief
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedproxy_secure.crypto.primitives import derive
from fedproxy_secure.crypto.secret import Secret
from fedproxy_secure.data.evaluate import perplexity, text_windows
from fedproxy_secure.evidence.estimate import wilson
from fedproxy_secure.models.llm import blocks_of, load_llm, with_blocks
from fedproxy_secure.tracing.copies import amplitudes, code_of, make_marks, marked_numbers
from fedproxy_secure.tracing.marks import Marks
from fedproxy_secure.tracing.suspects import ERROR, answers_in, judge, trace_rows
from fedproxy_secure.world.real_texts import real_texts
from fedproxy_secure.world.stories import stories
from tests.bench.rows import Row, publish

CLIENTS, COLLUDERS, STEPS = 20, (1, 2, 3), 100
OF_THREE = ("majority", "minority")  # of two copies, none is in the majority
PARTS = ("harm", "thieves", "collude", "real")
RATES = (1e-4, 1e-3, 3e-3)  # learning rates of AdamW
Attack = Callable[[np.random.Generator, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def interleave_numbers(rng, rows, agreed, amplitude):
    """Each number from one of the copies, by chance."""
    return np.take_along_axis(rows, rng.integers(len(rows), size=(1, *rows.shape[1:])), axis=0)[0]


def interleave_rows(rng, rows, agreed, amplitude):
    """Each row from one of the copies, by chance."""
    chosen = rng.integers(len(rows), size=rows.shape[1])
    return rows[chosen, np.arange(rows.shape[1])]


def average(rng, rows, agreed, amplitude):
    """The mean of the copies."""
    return rows.mean(axis=0)


def majority(rng, rows, agreed, amplitude):
    """The value that most of three copies have."""
    return np.median(rows, axis=0)


def always_up(rng, rows, agreed, amplitude):
    """The largest value of each number."""
    return rows.max(axis=0)


def minority(rng, rows, agreed, amplitude):
    """The value furthest from the mean, which the fewest of three copies have."""
    furthest = np.abs(rows - rows.mean(axis=0)).argmax(axis=0)
    return np.take_along_axis(rows, furthest[None], axis=0)[0]


def differing(rows, amplitude):
    """Where copies differ by more than bringing rows to their norm makes them."""
    return np.ptp(rows, axis=0) > amplitude


def put_back(rng, rows, agreed, amplitude):
    """What all clients agreed on, which every client knows."""
    return agreed


def random_bits(rng, rows, agreed, amplitude):
    """A bit by chance wherever copies differ."""
    bits = np.where(rng.random(agreed.shape) < 0.5, -1.0, 1.0)
    return np.where(differing(rows, amplitude), agreed + amplitude * bits, rows[0])


def zero_numbers(rng, rows, agreed, amplitude):
    """Zero wherever copies differ."""
    return np.where(differing(rows, amplitude), 0.0, rows[0])


def random_numbers(rng, rows, agreed, amplitude):
    """A random number wherever copies differ."""
    noise = rng.normal(size=agreed.shape) * np.sqrt(np.mean(agreed**2))
    return np.where(differing(rows, amplitude), noise, rows[0])


def random_rows(rng, rows, agreed, amplitude):
    """Random numbers in all rows in which copies differ: that is, in all marked ones."""
    noise = rng.normal(size=agreed.shape) * np.sqrt(np.mean(agreed**2))
    return np.where(differing(rows, amplitude).any(axis=1, keepdims=True), noise, rows[0])


ATTACKS: Mapping[str, Attack] = {
    f.__name__: f
    for f in (
        interleave_numbers,
        interleave_rows,
        average,
        always_up,
        majority,
        minority,
        random_bits,
        zero_numbers,
        random_numbers,
        random_rows,
    )
}


def key_of(seed: int, run: int) -> Secret:
    """A key that the seed draws: for benches and tests alone."""
    return derive(Secret(bytes(32)), info=f"bench {seed} {run}".encode())


def collude(
    marks: Marks, drift: np.ndarray, attack: Attack, colluders: int, *, runs: int, seed: int, error: float
) -> tuple[int, int, int]:
    """In how many of the runs an innocent client was accused, a colluder was, and all colluders were."""
    rng = np.random.default_rng([seed, colluders])
    names = [f"client-{i}" for i in range(CLIENTS)]
    wrongly, rightly, fully = 0, 0, 0
    for run in range(runs):
        code = code_of(key_of(seed, run), marks)
        words = code.words(names)
        guilty = rng.choice(CLIENTS, size=colluders, replace=False)
        rows = np.array([marked_numbers(marks, code, words[i]) for i in guilty])
        found = attack(rng, rows, marks.agreed_numbers, amplitudes(marks)) + drift
        accused = set(judge(answers_in(found, marks, code), code, words, names, error=error).accused)
        made = {names[i] for i in guilty}
        wrongly += bool(accused - made)
        rightly += bool(accused & made)
        fully += made <= accused
    return wrongly, rightly, fully


def tuned_rows(
    model: nn.Module,
    marks: Marks,
    rows: np.ndarray,
    windows: torch.Tensor,
    *,
    rate: float,
    seed: int,
    batch: int = 8,
) -> np.ndarray:
    """The marked rows after all parameters of a copy were trained for 100 steps; the model is as before."""
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[list(marks.rows)] = torch.from_numpy(rows).to(weight.dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        ids = windows[torch.randint(len(windows), (batch,), generator=generator)]
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found = weight.detach()[list(marks.rows)].double().numpy().copy()
    model.load_state_dict(before)
    model.eval()
    return found


def thieves(
    llm: str,
    model: nn.Module,
    marks: Marks,
    windows: torch.Tensor,
    rate: float,
    given: argparse.Namespace,
    command: str,
    batch: int = 8,
) -> list[Row]:
    """Let thieves tune their copies: how many are traced, and whether an innocent client is accused."""
    names = [f"client-{i}" for i in range(CLIENTS)]
    traced, wrongly, ratios = 0, 0, []
    for thief in range(given.thieves):
        key, name = key_of(given.seed, 10**6 + thief), names[thief % CLIENTS]
        code = code_of(key, marks)
        rows = marked_numbers(marks, code, code.words([name])[0])
        found = tuned_rows(model, marks, rows, windows, rate=rate, seed=given.seed + thief, batch=batch)
        trace = trace_rows(found, marks, key, names)
        traced += name in trace.accused
        wrongly += bool(set(trace.accused) - {name})
        ratios.append(trace.suspects[0].score / trace.threshold)
    what = f"{llm}, one thief, {STEPS} steps, AdamW {rate:g}"
    low, high = min(ratios), max(ratios)
    print(f"{what}: score over threshold {low:.2f} to {high:.2f}")
    return [
        share(f"{what}: traced", traced, given.thieves, command, least=0.9),
        share(f"{what}: innocent accused", wrongly, given.thieves, command, most=0),
    ]


def half(path: str) -> tuple[nn.Module, object, Marks]:
    """Every second block of an LLM, its tokenizer, and the marks that its folder gets."""
    model, tokenizer = load_llm(path, device="cpu", dtype="float32")
    small = with_blocks(model, list(range(0, len(blocks_of(model)), 2)))
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return small, tokenizer, make_marks(Path(folder))


def share(
    metric: str, hits: int, n: int, command: str, *, least: float | None = None, most: int | None = None
) -> Row:
    """The row of a share of runs; `least`: the share that it must reach, `most`: how many there may be."""
    target, ok = "", None
    if least is not None:
        target, ok = f">= {least:g}", hits >= least * n
    if most is not None:
        target, ok = f"at most {most}", hits <= most
    low, high = wilson(hits / n, n)
    return Row(
        metric=metric,
        value=hits / n,
        low=low,
        high=high,
        n=n,
        unit="share",
        target=target,
        ok=ok,
        command=command,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--thieves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    command = " ".join(["python -m tests.bench.tracing", *sys.argv[1:]])
    began, rows = time.monotonic(), []
    if set(given.parts) - {"real"}:
        model, tokenizer, marks = half("demo")
        text = stories(given.seed + 77)
        lines = "\n".join(next(text) for _ in range(600))
        windows = text_windows(lines, tokenizer, window_tokens=64, limit=400)
    if "harm" in given.parts:
        rows += harm("demo LLM", model, marks, windows[:64], given.seed, command)
    if "thieves" in given.parts:
        for rate in RATES:
            rows += thieves("demo LLM", model, marks, windows[64:], rate, given, command)
    if "collude" in given.parts:
        moved = tuned_rows(model, marks, marks.agreed_numbers, windows[64:], rate=1e-3, seed=given.seed)
        rows += collusions(marks, moved - marks.agreed_numbers, given, command)
    if "real" in given.parts:
        rows += real(given, command)
    print(f"{time.monotonic() - began:.0f} s")
    publish("tracing", rows)


def collusions(marks: Marks, drift: np.ndarray, given: argparse.Namespace, command: str) -> list[Row]:
    """One thief, then two and three of them in every way; and one who puts the agreed rows back."""
    rows = []
    for colluders in COLLUDERS:
        attacks = {n: a for n, a in ATTACKS.items() if colluders == 3 or n not in OF_THREE}
        if colluders == 1:
            attacks = {"as it is": average, "agreed rows put back": put_back}
        for name, attack in attacks.items():
            wrongly, rightly, fully = collude(
                marks, drift, attack, colluders, runs=given.runs, seed=given.seed, error=ERROR
            )
            what, n = f"{colluders} of {CLIENTS}, {name}", given.runs
            rows.append(share(f"{what}: innocent accused", wrongly, n, command, most=0))
            rows.append(share(f"{what}: one traced", rightly, n, command))
            rows.append(share(f"{what}: all traced", fully, n, command))
    return rows


def harm(
    llm: str, model: nn.Module, marks: Marks, windows: torch.Tensor, seed: int, command: str
) -> list[Row]:
    """How the perplexity of a copy differs from the unmarked proxy's on public text."""
    weight, ratios = model.get_input_embeddings().weight, []
    plain = perplexity(model, windows)
    kept = weight.detach()[list(marks.rows)].clone()
    for run in range(5):
        code = code_of(key_of(seed, 2 * 10**6 + run), marks)
        with torch.no_grad():
            marked = marked_numbers(marks, code, code.words(["client-0"])[0])
            weight[list(marks.rows)] = torch.from_numpy(marked).to(weight.dtype)
        ratios.append(abs(perplexity(model, windows) / plain - 1))
        with torch.no_grad():
            weight[list(marks.rows)] = kept
    return [
        Row(
            metric=f"{llm}: change of perplexity by a copy's marks, largest of 5 keys",
            value=max(ratios),
            n=len(windows),
            unit="share",
            target="",
            ok=None,
            command=command,
        )
    ]


def real(given: argparse.Namespace, command: str) -> list[Row]:
    """The same on the proxy of SmolLM2-135M, with smaller batches and one learning rate."""
    model, tokenizer, marks = half("smollm2")
    text = real_texts(given.seed + 77)
    lines = "\n".join(next(text) for _ in range(300))
    windows = text_windows(lines, tokenizer, window_tokens=32, limit=300)
    rows = harm("SmolLM2-135M", model, marks, windows[:16], given.seed, command)
    rows += thieves("SmolLM2-135M", model, marks, windows[16:], RATES[0], given, command, batch=2)
    return rows


if __name__ == "__main__":
    main()
