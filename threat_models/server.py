"""Threat models of a corrupted server, which owns the LLM and carries every message."""

from threat_models.base import ThreatModel

HONEST_BUT_CURIOUS_SERVER = ThreatModel(
    name="server",
    title="honest-but-curious server",
    server=True,
    knowledge="white box",
    capabilities=(
        "keeps every message and every sum of all rounds",
        "knows the LLM, the proxy, the broadcast adapters and all settings, seeds included",
        "has unlimited computing time afterwards",
    ),
    assumptions=(
        "it follows the protocol",
        "no client helps it",
        "with unsafe_plaintext it holds every update; with masking it holds only sums",
    ),
    non_goals=("what a server that cheats could learn: see active_server",),
)
ACTIVE_SERVER = ThreatModel(
    name="active_server",
    title="server that deviates",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "does all that the honest-but-curious server can",
        "sends each client keys, adapters, cohorts, survivors or thresholds of its own choice",
        "asks for rounds, settings and plaintext that were not agreed on",
        "drops, repeats or delays messages",
    ),
    assumptions=(
        "provisioning was honest: every client has the true roster and its own policy",
        "no client helps it; for that see active_server_with_clients",
        "clients run code of their own, not code that the server ships through Flower",
    ),
    non_goals=(
        "availability: a server can always stop a round",
        "what an honest sum reveals if the server chose the adapter, but sent all clients the same one",
        "concurrent messages and repeated runs (parallel_server), a proxy made to leak "
        "(malicious_proxy), clients that the server makes up (sybils)",
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
        "does all that the active server can, with one client's records, updates, key and signatures",
        "has that client sign two sets of survivors and hand over both shares of every secret it holds",
        "subtracts that client's update from every sum, which leaves a sum over the others",
    ),
    assumptions=(
        "`protect.colluders` is at least 1 in every client's policy, so that the threshold allows for the "
        "helper",
        "the sum has at least two honest clients, which the policy enforces",
    ),
    non_goals=(
        "more helpers than `protect.colluders`",
        "CKKS, and the sketches of weights `encrypted_gram`: with any one client's help the server opens "
        "all of them, by design",
    ),
)
PARALLEL_SERVER = ThreatModel(
    name="parallel_server",
    title="server that sends concurrently, rolls back states, and repeats runs",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "does all that the active server can",
        "sends a client several messages at the same time, each to a process of its own",
        "starts new Flower runs, whose state is empty, and restores old states",
        "asks for a round again with another clip, adapter, cohort, set of survivors or proxy",
        "asks for several private rounds at the same time, before the privacy ledger has counted any",
    ),
    assumptions=(
        "each client's disk keeps key, journal and privacy ledger; no copy of the key is used elsewhere",
        "not all of journal, the file beside it that says how new it is, Flower's state and ledger are "
        "restored to an older version; the one that remembers most is believed",
    ),
    non_goals=(
        "a journal restored together with the file beside it, in a new run of Flower: nothing is left that "
        "remembers",
        "several seeds in one policy: each seed is a run, and two runs' cohorts may differ by one client",
        "what sums of different rounds tell together",
    ),
)
MALICIOUS_PROXY = ThreatModel(
    name="malicious_proxy",
    title="server whose proxy is made to leak",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "does all that the honest-but-curious server can",
        "designs the proxy to leak: its weights, its embeddings, its tokenizer, its files",
        "chooses the first adapter as well",
    ),
    assumptions=(
        "all clients of a sum get the same proxy and adapter, because their signatures cover both",
        "before they read a record, clients check that the proxy's files are those of a causal LM and "
        "refer to nothing else, that what they loaded is what the job names, that the model has a place "
        "for every token of its tokenizer, and that it runs",
    ),
    non_goals=(
        "the purpose of the weights: clients cannot see it; a proxy may have gradients for chosen tokens "
        "only",
        "that somebody holds such a token: a sum hides who it is, only differential privacy hides that "
        "there is one",
        "failures without differential privacy: a client that fails in training reveals something about "
        "its records",
    ),
)
SYBILS = ThreatModel(
    name="sybils",
    title="server whose own clients join the roster",
    server=True,
    active=True,
    knowledge="white box",
    capabilities=(
        "does all that the active server can",
        "gets clients of its own into the honest clients' roster, as many as it likes",
        "knows what they send, subtracts it from sums, and cuts off honest clients",
    ),
    assumptions=("a run keeps the roster that it began with: clients refuse another one within the run",),
    non_goals=(
        "a roster that is mostly Sybils when a run begins: a sum then hides one client among few or none, "
        "so clients must know the roster from somebody other than the server: with `deploy`, by comparing "
        "its fingerprint with each other",
    ),
)
