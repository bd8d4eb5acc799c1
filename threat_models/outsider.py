"""Threat models of outsiders: the network, and customers of the fused LLM."""

from threat_models.base import ThreatModel

NETWORK_EAVESDROPPER = ThreatModel(
    name="network",
    title="network eavesdropper",
    network=True,
    knowledge="proxy only",
    capabilities=("reads every message between server and clients, the proxy's files included",),
    assumptions=(
        "there is no TLS, or it is broken: with TLS this adversary sees only sizes and times",
        "without TLS the shares that unmask a sum are readable, so it computes the same sums as the server",
    ),
    non_goals=("traffic analysis",),
)
ACTIVE_NETWORK = ThreatModel(
    name="active_network",
    title="network that alters, drops and replays messages",
    network=True,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "does all that the eavesdropper can",
        "alters, drops, delays, repeats and replays messages, and inserts its own, in both directions",
    ),
    assumptions=(
        "there is no TLS, or it is broken: with TLS and Flower's node authentication it can drop and delay "
        "messages, no more",
        "clients got the roster over another channel, and client keys and the server's host are safe",
    ),
    non_goals=(
        "availability: a round whose messages are dropped is aborted",
        "unsafe_plaintext: updates carry no signature there, so an altered update enters the mean",
        "what it could ask for in the server's place: see active_server",
        "traffic analysis",
    ),
)
API_USER = ThreatModel(
    name="api_user",
    title="user of the fused LLM",
    api=True,
    knowledge="black box",
    capabilities=(
        "queries the fused LLM and reads what the run's `api` tells: all logits unless it says less",
    ),
    assumptions=(
        "holds neither proxy nor adapters",
        "the budget, and the limits that `api` names, bound the number of queries",
        "customers who pool their answers count as one customer, because limits are per customer",
    ),
    non_goals=("timing and other side channels of the service",),
)
