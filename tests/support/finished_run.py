"""A finished run on disk, as reports read it."""

import json
from pathlib import Path

from fedproxy_secure.evidence.finding import Finding, write_findings

VECTOR = {"vector": True}
ROWS = [
    {"message": "Broadcast", "to": "clients", "reveals": "the adapter", "count": 3, "bytes": 300, **VECTOR},
    {"message": "Proxy", "to": "clients", "reveals": "blocks", "count": 3, "bytes": 9000, **VECTOR},
    {"message": "MaskedInput", "to": "server", "reveals": "nothing", "count": 3, "bytes": 330, **VECTOR},
    {"message": "Shares", "to": "server", "reveals": "nothing", "count": 3, "bytes": 30},
    {"message": "update", "to": "server", "reveals": "a sum", "count": 1, "bytes": 100, "computed": True},
]
FIDELITY = {
    "kl_nats": 0.5,
    "agreement": 0.5,
    "cka": [1.0, 0.5],
    "llm_perplexity": 5,
    "proxy_perplexity": 10,
}


def write_run(folder: Path, *, seeds: tuple[int, ...], findings: tuple[Finding, ...] = ()) -> Path:
    for seed in seeds:
        place = folder / f"seed-{seed}"
        (place / "federation").mkdir(parents=True)
        answers = {
            "zero_shot": {"a": "0000", "b": "0101"},
            "proxy": {"a": "0000", "b": "0101"},
            "tuned": {"a": "0011", "b": "0101"},
            "fused": {"a": "0111" if seed else "1111", "b": "0101"},
        }
        result = {
            "seed": seed,
            "fidelity": FIDELITY,
            "verbatim_share": 0.5,
            "perplexity": {"fused": 6.0 + seed, "tuned": 9.0},
            "plug_back": {"scale": 1.0, "tried": [], "aligned_blocks": 0, "aligned_windows": 0},
            **answers,
            **{f"{model}_norm": bits for model, bits in answers.items()},
            "truncated": 0,
            "privacy_notes": [],
            "spent": {},
            "events": {},
            "seconds": {"federate": 2.0, "compress": 1.0},
            "peak_memory_bytes": 100,
        }
        (place / "result.json").write_text(json.dumps(result))
        rounds = [
            {"round": r, "participants": ["x", "y", "z"], "loss": 2.0 - r, "step_norm": 1.0, "seconds": 1.5}
            for r in range(2)
        ]
        ledger = [
            {"round": r, **row} for r in range(2) for row in ROWS if r == 0 or row["message"] != "Proxy"
        ]
        for name, lines in (("rounds", rounds), ("ledger", ledger)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (place / "federation" / f"{name}.jsonl").write_text(text)
    if findings:
        write_findings(folder, findings)
    return folder
