"""The server: it owns the LLM, carries every message, and wants the clients' records."""

from threat_models.base import ThreatModel

HONEST_BUT_CURIOUS_SERVER = ThreatModel(
    name="server",
    title="honest-but-curious server",
    server=True,
    knowledge="white box",
    capabilities=(
        "keeps every message and every sum of all rounds",
        "knows the LLM, the proxy, the broadcast adapters and all settings, seeds included",
        "computes as long as it likes afterwards",
    ),
    assumptions=(
        "it follows the protocol",
        "no client helps it",
        "with unsafe_plaintext it holds every update; with masking, sums only",
    ),
    non_goals=("that a server that cheats learns no more: see active_server",),
)
ACTIVE_SERVER = ThreatModel(
    name="active_server",
    title="server that deviates",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "all that the honest-but-curious server can",
        "sends other keys, adapters, cohorts, survivors or thresholds, to each client as it likes",
        "asks for rounds, settings and plaintext that were not agreed on",
        "drops, repeats or delays messages",
    ),
    assumptions=(
        "provisioning was honest: every client has the true roster and its own policy",
        "no client helps it: see active_server_with_clients",
        "the code that clients run is their own, not what the server shipped through Flower",
    ),
    non_goals=(
        "availability: a server can always stop a round",
        "what a chosen adapter brings out of an honest sum, if all clients get the same one",
        "messages at once and runs begun again (parallel_server), a proxy made to leak (malicious_proxy), "
        "clients of its own making (sybils)",
    ),
)
ACTIVE_SERVER_WITH_CLIENTS = ThreatModel(
    name="active_server_with_clients",
    title="server that deviates, with a client's help",
    server=True,
    clients=1,
    active=True,
    knowledge="white box",
    capabilities=(
        "all that the active server can, with one client's records, updates, key and signatures",
        "that client signs two sets of survivors and gives both shares of every secret it holds",
        "subtracts that client's update from every sum: what is left is a sum over the others",
    ),
    assumptions=(
        "`protect.colluders` is at least 1 in every client's policy: the threshold then counts on it",
        "the sum has two honest clients at least; the policy sees to that",
    ),
    non_goals=(
        "more helpers than `protect.colluders`",
        "CKKS, and the sketches of weights `encrypted_gram`: any client's help opens every one, by design",
    ),
)
PARALLEL_SERVER = ThreatModel(
    name="parallel_server",
    title="server that sends in parallel, rolls back, begins again",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "all that the active server can",
        "sends a client several messages at once, each to a process of its own",
        "begins new runs of Flower, whose states remember nothing, and puts states back",
        "asks for a round again with another clip, adapter, cohort, survivors or proxy",
        "asks for private rounds at once, before any is paid for",
    ),
    assumptions=(
        "each client's disk keeps key, journal and privacy ledger; no copy of the key answers elsewhere",
        "of journal, Flower's state and ledger not all are put back: what remembers more is believed",
    ),
    non_goals=(
        "a journal put back together with Flower's state and the ledger: nothing is left that remembers",
        "several seeds in one policy: each is a run, and two runs' cohorts may differ by one client",
        "that sums of different rounds tell nothing together",
    ),
)
MALICIOUS_PROXY = ThreatModel(
    name="malicious_proxy",
    title="server whose proxy is made to leak",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "all that the honest-but-curious server can",
        "makes the proxy for a purpose: its weights, its embeddings, its tokenizer, its files",
        "chooses the first adapter as well",
    ),
    assumptions=(
        "all clients of a sum get the same proxy and adapter: both are in what they sign",
        "clients check, before they read a record, that the proxy's files are a causal LM's and lead "
        "nowhere else, that what they loaded is what the job names, that every token of its tokenizer has "
        "its place in it, and that it runs",
    ),
    non_goals=(
        "what the weights are for: no client can tell; a proxy may have gradients for chosen tokens alone",
        "that somebody holds such a token: a sum hides who, differential privacy alone hides that",
        "without differential privacy, failures: a client that fails in training tells of its records",
    ),
)
SYBILS = ThreatModel(
    name="sybils",
    title="clients of the server's own making join the roster",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "all that the active server can",
        "gets clients of its own into the honest clients' roster, as many as it likes",
        "knows what they send, subtracts it from sums, and cuts honest clients off",
    ),
    assumptions=("a run keeps the roster that it began with: a later one is refused within it",),
    non_goals=(
        "a roster that is mostly Sybils when a run begins: a sum then hides one client among few or none; "
        "whoever makes the roster must not be the server",
    ),
)
