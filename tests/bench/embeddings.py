"""What embeddings of lower rank cost a real LLM, for two ways to choose the directions that stay.

`make bench-embeddings`, on SmolLM2-135M, with all blocks as they are. KL on other text than the directions
are chosen on.
"""

from __future__ import annotations

from typing import Any

import torch

from fedproxy_secure import prepare
from fedproxy_secure.compress.defences.embeddings import of_rank, reduce_embeddings
from fedproxy_secure.compress.defences.low_rank import rank_for
from fedproxy_secure.compress.fidelity import fidelity
from fedproxy_secure.config import load_config
from fedproxy_secure.models.llm import sharing_copy
from tests.bench.rows import Row, publish

COMMAND = "make bench-embeddings"
SETTINGS = "configs/real_proxies.yaml"
CHOSEN, JUDGED = 16, 12  # windows


def main() -> None:
    """Measure the KL at two ranks in two ways; print, write."""
    config = load_config(
        SETTINGS, ["attacks.suite=none", f"compress.calibration_sequences={CHOSEN + JUDGED}"]
    )
    materials = prepare(config)
    chosen, judged = materials.windows[:CHOSEN], materials.windows[CHOSEN:]
    llm: Any = materials.llm
    weight = llm.get_input_embeddings().weight
    counts = torch.bincount(chosen.flatten(), minlength=len(weight)) + 1
    plain = torch.eye(weight.shape[1])
    rows = []
    for share in (0.5, 0.25):
        rank = rank_for(weight.shape, share)
        for both in (False, True):
            model = sharing_copy(llm).eval()
            if both:
                reduce_embeddings(llm, model, chosen, rank)
            else:
                plain = torch.eye(weight.shape[1])
                model.get_input_embeddings().weight.data = of_rank(
                    weight, rank, plain, counts / counts.sum()
                )
            found = fidelity(llm, model, None, judged)
            how = "rows read and the head's inputs" if both else "rows read alone"
            rows.append(
                Row(
                    metric=f"KL, {share:.0%} of the embeddings removed, rank {rank}, {how}",
                    value=found.kl_nats,
                    n=judged.numel(),
                    unit="nats",
                    target="",
                    ok=None,
                    command=COMMAND,
                )
            )
    publish("embeddings", rows)


if __name__ == "__main__":
    main()
