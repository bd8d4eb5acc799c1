"""A method of your own in a comparison: every client trains the proxy alone, and one average ends it.

One-shot averaging needs a single message from each client, so it is the cheapest baseline that a federated
method must beat. To let the command line and the processes of a comparison find it, name it in the
`pyproject.toml` of your package:

    [project.entry-points."fedproxy_secure.methods"]
    one_shot = "own_method:ONE_SHOT"

Then add `one_shot` to `compare.methods` in any settings. A script adds it to its own process:

    METHODS.add("one_shot", ONE_SHOT)
    compare(load_config("mine.yaml", ["compare.jobs=1"]), Path("runs/mine"))
"""

import copy

import torch

import fedproxy_secure as fp
from fedproxy_secure.experiments.inputs import Inputs
from fedproxy_secure.models.adapters import vector_bytes


class OneShot(fp.Method):
    """Average what each client's own training adds to the proxy, and plug that back into the LLM."""

    def run(self, inputs: Inputs) -> fp.MethodResult:
        proxy = inputs.proxy()
        tuned = [own.train_pooled(copy.deepcopy(proxy.model)) for own in inputs.each_task()]
        deltas = [fp.block_deltas(model) for model in tuned]
        mean = {key: torch.stack([delta[key] for delta in deltas]).mean(dim=0) for key in deltas[0]}
        fused = fp.plug_back(inputs.llm, proxy, mean)
        return fp.MethodResult(fused=inputs.evaluate(fused), upload_bytes=vector_bytes(tuned[0]))


ONE_SHOT = OneShot(
    name="one_shot",
    title="each client alone, averaged once",
    note="one_shot: the server sees every client's update, once; upload_bytes are of that message.",
)
