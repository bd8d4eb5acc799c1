"""How a large proxy reaches four sites over slow, lossy cables, one of which is cut on the way.

    python -m tests.network.large_proxy --megabytes 325 --mbit 20 --loss 0.01 --cut-s 20

Prints, as JSON: the size of the proxy, how long each site took for all but a hundredth of its weights at
either end, how often the proxy's bytes crossed each site's cable before the first round, whether the result
is exact, and the largest resident memory of each process, by its role, in MB (10**6 bytes).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fedproxy_secure.models.llm import load_llm
from tests.network.deployed import CONFIG, SITES, Deployed
from tests.network.disturbing import Running
from tests.network.exactness import Exactness, taken
from tests.support.network.whole import Network

ENDS_WITHIN_S = 1800.0
_ROLES = (
    "launch.superlink",
    "serverapp",
    "deploy run",
    "launch.supernode",
    "launch.worker",
    "deploy start",
)


def widened_llm(folder: Path, *, proxy_mb: float) -> Path:
    """Write the embedded LLM with wider blocks, of which half have so many MB of 32-bit weights.

    What is new in a block is random and multiplied by zero: the LLM predicts as before, and sites take a
    proxy of it, as they would not take a random one.
    """
    torch.manual_seed(0)
    llm, tokenizer = load_llm("demo", device="cpu")
    blocks, width = llm.config.num_hidden_layers, llm.config.hidden_size
    inner = round(proxy_mb * 1e6 / 4 / (blocks // 2) / (3 * width))
    settings = {**llm.config.to_dict(), "intermediate_size": inner}
    wide = LlamaForCausalLM(LlamaConfig(**settings))
    state = wide.state_dict()
    for name, old in llm.state_dict().items():
        new = torch.zeros_like(state[name]) if "down_proj" in name else state[name].clone()
        new[tuple(slice(0, size) for size in old.shape)] = old
        state[name] = new
    wide.load_state_dict(state)
    wide.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(work: Path, *, megabytes: float, mbit: float, loss: float, cut_s: float) -> dict[str, Any]:
    """Run a federation of one round and return what was measured."""
    llm = widened_llm(work / "llm", proxy_mb=megabytes)
    clients = [{**client, "train_records": 8, "test_records": 4} for client in CONFIG["data"]["clients"]]
    config = {
        **CONFIG,
        "model": {"path": str(llm), "device": "cpu", "dtype": "float32"},
        "data": {"clients": clients},
        "adapter": {"modules": "attention"},
        "local": {"steps": 1, "batch_size": 2},
        "federate": {"rounds": 1, "timeout_s": 900.0},
    }
    with Network(sites=len(SITES)) as network:
        running = Running(network=network, deployed=Deployed.prepare(network, work / "fed", config))
        for host in network.sites:
            host.link.rate(mbit)
            host.link.loss(loss)
        running.start_missing_sites()
        running.start("owner")
        watched = _watch(running, wanted=megabytes * 1e6, cut_s=cut_s)
        running.stop_sites()
        federation = running.deployed.state.parent
        proxy = running.deployed.owner / "run" / "seed-0" / "proxy"
        size = sum(file.stat().st_size for file in proxy.iterdir())
        watched["crossed"] = {name: round(came / size, 2) for name, came in watched["crossed"].items()}
        return {
            "proxy_mb": round(size / 1e6, 1),
            "mbit": mbit,
            "loss": loss,
            "cut_s": cut_s,
            **watched,
            "sites": len(taken(federation)[0]),
            "exact": Exactness().holds(federation),
        }


def _watch(running: Running, *, wanted: float, cut_s: float) -> dict[str, Any]:
    """Watch bytes and memory until the owner ends; cut the first site's cable when a third has passed."""
    owner, first = running.processes["owner"], running.network.sites[0]
    began = time.monotonic()
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    memory: dict[str, float] = {}
    crossed: dict[str, int] = {}
    restore_at = None
    cut = False
    while owner.poll() is None:
        now = time.monotonic() - began
        if now > ENDS_WITHIN_S:
            raise TimeoutError(f"the owner has not ended in {ENDS_WITHIN_S:.0f} s")
        for name, host in zip(SITES, running.network.sites, strict=True):
            came = host.link.passed().to_host
            if came > 0.01 * wanted:
                start.setdefault(name, now)
            if came > 0.99 * wanted:
                end.setdefault(name, now)
            if not _trains(running, name):
                crossed[name] = came
        if not cut and first.link.passed().to_host > wanted / 3:
            cut, restore_at = True, now + cut_s
            first.link.cut()
        if restore_at is not None and now > restore_at:
            restore_at = None
            first.link.restore()
        _note_memory(running, memory)
        time.sleep(0.5)
    return {
        "ended_with": owner.returncode,
        "seconds_to_arrive": {name: round(end[name] - start[name], 1) for name in end},
        "crossed": crossed,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": {role: round(mb) for role, mb in sorted(memory.items())},
        "was_cut": cut,
    }


def _trains(running: Running, site: str) -> bool:
    """Return whether a site's node has been asked to train."""
    with suppress(FileNotFoundError):
        log = running.deployed.site(site) / "logs" / "supernode.log"
        return b"ROUND round 0, train]" in log.read_bytes()
    return False


def _note_memory(running: Running, memory: dict[str, float]) -> None:
    """Update each role's peak: the largest resident memory of any of its processes so far."""
    for host in running.network.hosts:
        for pid, line in host.processes().items():
            role = next((role for role in _ROLES if role in line), None)
            if role is None:
                continue
            with suppress(FileNotFoundError, ProcessLookupError):
                found = re.search(
                    r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                )
                if found is not None:
                    memory[role] = max(memory.get(role, 0.0), int(found[1]) * 1024 / 1e6)


def main() -> None:
    """Measure once, and print it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=325.0, help="of the proxy's weights")
    parser.add_argument("--mbit", type=float, default=20.0, help="of each site's cable")
    parser.add_argument(
        "--loss", type=float, default=0.01, help="share of the frames, on each site's cable"
    )
    parser.add_argument("--cut-s", type=float, default=20.0, help="how long the first site's cable is cut")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedproxy-large-") as folder:
        options = {"mbit": asked.mbit, "loss": asked.loss, "cut_s": asked.cut_s}
        print(json.dumps(measure(Path(folder), megabytes=asked.megabytes, **options), indent=2))


if __name__ == "__main__":
    sys.exit(main())
