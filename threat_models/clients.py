"""Threat models of corrupted clients, which hold the proxy and may want the LLM, records or damage."""

from threat_models.base import ThreatModel

MALICIOUS_CLIENT = ThreatModel(
    name="client",
    title="malicious client",
    clients=1,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "knows the proxy, every broadcast adapter, its own records and updates, all settings",
        "queries the fused LLM like any customer, and receives what the run's section `api` allows",
        "sends any update, inside or outside the protocol's range",
    ),
    assumptions=(
        "no other client helps it",
        "the server is honest",
        "it also receives the tuned proxy with the final adapter, although no message contains it",
    ),
    non_goals=(
        "that poisoning is stopped: masking hides who did it",
        "what a client gains by ring words beyond the clip and by false control words: see lying_clients",
    ),
)
LYING_CLIENTS = ThreatModel(
    name="lying_clients",
    title="client that lies in its control words and ring words",
    clients=1,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "does all that a malicious client can",
        "sends any ring words, also beyond the clip",
        "states any weight, count, steps, loss, clipped and largest value; answers with malformed messages",
    ),
    assumptions=(
        "no other client helps it, and the server is honest",
        "the server checks sums against what the settings imply: equal weights add up to K, other weights "
        "to at least K / e, and the step is no longer than honest clients can make it",
    ),
    non_goals=(
        "that it moves the mean no farther than an honest client does: it moves a coordinate by up to two "
        "clips, an honest client by 2 / K clips (e times as much with weights other than uniform)",
        "which client lied: a sum does not show it",
        "availability: the client can make every attempt abort",
    ),
)
COLLUDING_CLIENTS = ThreatModel(
    name="colluding_clients",
    title="two clients together",
    clients=2,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "does all that a malicious client can, with both clients' records and updates",
        "subtracts their updates from what a round moved",
    ),
    assumptions=("the server is honest",),
    non_goals=("more than two colluders: declare a model with more `clients`",),
)
SERVER_WITH_CLIENTS = ThreatModel(
    name="server_with_clients",
    title="server and two clients together",
    server=True,
    clients=2,
    knowledge="white box",
    capabilities=(
        "does all that the honest-but-curious server can, with two clients' records, updates and keys",
        "subtracts their updates from every sum, which leaves a sum over the others",
    ),
    assumptions=(
        "they follow the protocol",
        "with CKKS they decrypt every update; a single client would suffice for that",
    ),
    non_goals=("more colluders than the threshold allows",),
)
