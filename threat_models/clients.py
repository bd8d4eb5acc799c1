"""Clients: they hold the proxy and want the LLM, other clients' records, or a poisoned result."""

from threat_models.base import ThreatModel

MALICIOUS_CLIENT = ThreatModel(
    name="client",
    title="malicious client",
    clients=1,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "knows the proxy, every broadcast adapter, its own records and updates, all settings",
        "queries the fused LLM as any customer",
        "sends any update within the protocol's range",
    ),
    assumptions=(
        "no other client helps it",
        "the server is honest",
        "it is given the tuned proxy: the final adapter, which no message brings",
    ),
    non_goals=("that poisoning is stopped: masking hides it, only the clip bounds it",),
)
COLLUDING_CLIENTS = ThreatModel(
    name="colluding_clients",
    title="two clients together",
    clients=2,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "all that a malicious client can, with both clients' records and updates",
        "subtract their updates from what a round moved",
    ),
    assumptions=("the server is honest",),
    non_goals=("more colluders than two: declare a model with more `clients`",),
)
SERVER_WITH_CLIENTS = ThreatModel(
    name="server_with_clients",
    title="server and two clients together",
    server=True,
    clients=2,
    knowledge="white box",
    capabilities=(
        "all that the honest-but-curious server can, with two clients' records, updates and keys",
        "subtract their updates from every sum: what is left is a sum over the others",
    ),
    assumptions=("they follow the protocol", "with CKKS they open every update (any one client does)"),
    non_goals=("more colluders than the threshold allows",),
)
