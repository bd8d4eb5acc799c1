"""What measures are called, what they mean, and the words that say them in a sentence.

Measures that are not listed here are shown under their estimate's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedproxy_secure.report.trilemma import Measure


@dataclass(frozen=True, kw_only=True)
class Words:
    """`phrase`: follows "it" or a configuration's name, with `{}` where the number stands.

    `points`: a difference of shares, shown in percentage points with its sign.
    """

    title: str
    meaning: str = ""
    phrase: str = ""
    points: bool = False


WORDS: Mapping[str, Words] = {
    "accuracy_zero_shot": Words(
        title="LLM before tuning", meaning="Right answers of the LLM as it came, mean over tasks."
    ),
    "accuracy_tuned_proxy": Words(
        title="tuned proxy", meaning="Right answers of the tuned proxy, which every client holds."
    ),
    "accuracy_fused": Words(
        title="fused LLM",
        meaning="Right answers of the fused LLM, mean over tasks.",
        phrase="the fused LLM answers {} of the test records rightly",
    ),
    "accuracy_centralised": Words(
        title="centralised LLM",
        meaning="Right answers of the LLM tuned on all records together: the ceiling.",
    ),
    "gap_closed": Words(
        title="gap closed",
        meaning="0 % is the LLM as it came, 100 % the LLM tuned on all records together.",
        phrase="the fused LLM closes {} of the gap to tuning on all records together",
    ),
    "perplexity_before": Words(title="perplexity before", meaning="Of the LLM on public text, as it came."),
    "perplexity_after": Words(
        title="perplexity after", meaning="Of the fused LLM on public text: above before, it has forgotten."
    ),
    "epsilon_claimed": Words(
        title="ε claimed, one seed",
        meaning="What differential privacy promises of one seed alone at most; smaller is stronger.",
    ),
    "epsilon_spent": Words(
        title="ε spent, all seeds",
        meaning="By the accountant, of all seeds together, which train on the same records; of the client "
        "that spent most.",
        phrase="differential privacy has spent ε {} over all seeds",
    ),
    "epsilon_spent_one_seed": Words(
        title="ε spent, one seed",
        meaning="Of the seed that spent most, as if it had been the only one.",
    ),
    "epsilon_total": Words(
        title="ε of all configurations",
        meaning="Of all configurations of the report together, which train on the same records.",
    ),
    "epsilon_audited": Words(
        title="ε audited", meaning="A lower bound from attacks; above the claim, the claim is wrong."
    ),
    "delta": Words(title="δ", meaning="The probability with which the promise of ε may fail."),
    "effective_cohort": Words(
        title="fewest clients in a sum",
        meaning="Less those that may collude; 1 means that single updates are seen.",
        phrase="the smallest group an update hides in counts {}",
    ),
    "token_auc": Words(
        title="token AUC",
        meaning="How well tokens of the records are told from others; 0.5 is chance, 1 is all of them.",
        phrase="tokens of the records are told from others with AUC {}",
    ),
    "exact_sequence_recall": Words(
        title="whole records found",
        meaning="Share of records that an attack wrote out word for word.",
        phrase="{} of the attacked records come out word for word",
    ),
    "tpr_at_1pct_fpr": Words(
        title="members found at 1\u00a0% false alarms",
        meaning="True positives of the strongest membership attack at 1 % false ones; chance is 1 %.",
        phrase="the strongest membership attack finds {} of the members at 1\u00a0% false alarms",
    ),
    "membership_auc": Words(
        title="membership AUC",
        meaning="How well training records are told from others; 0.5 is chance.",
        phrase="training records are told from others with AUC {}",
    ),
    "canary_exposure_bits": Words(
        title="canary exposure",
        meaning="How far above its rivals the model ranks a planted secret; 1.4 bits by chance.",
    ),
    "verbatim_share": Words(
        title="LLM weights held by a client",
        meaning="Share of the LLM's parameters that the proxy holds unchanged.",
        phrase="a client holds {} of the LLM's weights unchanged",
    ),
    "owners_edge": Words(
        title="owner's edge",
        meaning="Fused LLM minus tuned proxy: what the owner has and clients have not.",
        phrase="the fused LLM's lead over what clients hold is {}",
        points=True,
    ),
    "proxy_accuracy": Words(title="proxy before tuning", meaning="Right answers of the untuned proxy."),
    "proxy_kl_nats": Words(title="KL of LLM to proxy", meaning="On public text; 0 is the same model."),
    "proxy_cka": Words(title="CKA of LLM and proxy", meaning="Likeness of hidden states; 1 is the same."),
    "proxy_perplexity_ratio": Words(
        title="proxy's perplexity over the LLM's", meaning="On public text; 1 is the same."
    ),
    "extraction_R": Words(
        title="extraction R",
        meaning="How far an attacker with proxy and queries gets from the proxy (0 %) to the LLM (100 %).",
        phrase="an attacker with the proxy and queries gets {} of the way to the LLM",
    ),
    "api_gain": Words(title="API gain", meaning="What the queries add to extraction.", points=True),
    "proxy_gain": Words(
        title="proxy gain", meaning="What holding the proxy adds to extraction.", points=True
    ),
    "healing_R": Words(
        title="healing R", meaning="As extraction R, without any query: public text and compute alone."
    ),
    "upload_bytes": Words(title="upload", meaning="Bytes that a client sends in a round."),
    "download_bytes": Words(title="download", meaning="Bytes that a client receives in a round."),
    "protocol_bytes": Words(
        title="protocol",
        meaning="Bytes of a client and round that are no vector: keys, shares, signatures.",
    ),
    "seconds_federate": Words(title="federation", meaning="Wall time of all rounds."),
    "seconds_total": Words(
        title="whole run", meaning="Wall time of compression, federation, fusion and tests."
    ),
    "upload_over_unprotected": Words(
        title="upload over unprotected",
        meaning="Bytes sent, over those of the same seed without protection.",
    ),
    "seconds_over_unprotected": Words(
        title="rounds over unprotected",
        meaning="Wall time of rounds, over the same seed's without protection.",
    ),
    "peak_memory_bytes": Words(title="peak memory", meaning="Most memory the process held."),
}


def words_of(measure: Measure) -> Words:
    """Of its key; the estimate's name where the key is not listed."""
    return WORDS.get(measure.key) or Words(title=measure.estimate.metric)
