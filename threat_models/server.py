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
        "drops, repeats or delays messages",
    ),
    assumptions=(
        "provisioning was honest: every client has the true roster and its own settings",
        "at most `protect.colluders` clients help it",
    ),
    non_goals=(
        "availability: a server can always stop a round",
        "what a chosen adapter brings out of an honest sum, if all clients get the same one",
    ),
)
