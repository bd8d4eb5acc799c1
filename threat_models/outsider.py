"""Outsiders: the network, and customers of the fused LLM."""

from threat_models.base import ThreatModel

NETWORK_EAVESDROPPER = ThreatModel(
    name="network",
    title="network eavesdropper",
    network=True,
    knowledge="proxy only",
    capabilities=("reads every message between server and clients, the proxy's files included",),
    assumptions=(
        "there is no TLS, or it is broken: with TLS this adversary sees sizes and times alone",
        "shares of masks pass in the clear, so it computes the same sums as the server",
    ),
    non_goals=("traffic analysis",),
)
API_USER = ThreatModel(
    name="api_user",
    title="user of the fused LLM",
    api=True,
    knowledge="black box",
    capabilities=("queries the fused LLM and reads next-token logits",),
    assumptions=("holds neither proxy nor adapters", "the budget bounds the number of queries"),
    non_goals=("timing and other side channels of the service",),
)
