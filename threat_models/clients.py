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
        "sends any update, in the protocol's range or beyond it",
    ),
    assumptions=(
        "no other client helps it",
        "the server is honest",
        "it is given the tuned proxy: the final adapter, which no message brings",
    ),
    non_goals=(
        "that poisoning is stopped: masking hides who did it",
        "how far it goes beyond the clip, and lies in control words: see lying_clients",
    ),
)
LYING_CLIENTS = ThreatModel(
    name="lying_clients",
    title="client that lies in control words and ring words",
    clients=1,
    active=True,
    knowledge="proxy only",
    capabilities=(
        "all that a malicious client can",
        "sends any ring words, those beyond the clip too",
        "says any weight, count, steps, loss, clipped and largest value; answers with what is no message",
    ),
    assumptions=(
        "no other client helps it, and the server is honest",
        "the server holds sums against what the settings imply: equal weights add up to K, others to K / e "
        "at least, the step is no longer than honest clients can make it",
    ),
    non_goals=(
        "that it moves the mean no farther than an honest client: it moves a coordinate by up to two "
        "clips, an honest one by 2 / K clips (with weights other than uniform e times as much)",
        "who lied: a sum does not tell",
        "availability: it can end every attempt",
    ),
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
