"""The form that reports require of a seed's files: names, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedproxy_secure.runtime.quoting import quoted

NUMBER = (int, float)
# name -> the types of a value, or the form of an object; None: an object of numbers
Form = Mapping[str, Any]

RESULT_HAS: Form = {  # answers, losses and privacy costs are checked when they are decoded
    "fidelity": {
        **dict.fromkeys(("kl_nats", "agreement", "llm_perplexity", "proxy_perplexity"), NUMBER),
        "cka": list,
    },
    "verbatim_share": NUMBER,
    "perplexity": {"fused": (*NUMBER, type(None))},
    "plug_back": {"scale": NUMBER, "tried": list, "aligned_windows": int},
    "truncated": int,
    "privacy_notes": list,
    "seconds": None,
    "peak_memory_bytes": NUMBER,
}
HEALING_HAS: Form = {
    "tokens": NUMBER,
    "seconds": NUMBER,
    "before_healing": {"fidelity": {"kl_nats": NUMBER}, "verbatim_share": NUMBER},
}
ROUND_HAS: Form = {"round": int, "participants": list, "seconds": NUMBER}
LEDGER_HAS: Form = {"message": str, "to": str, "reveals": str, "count": int, "bytes": int}


def lacking(form: Form, raw: object, where: str = "") -> str | None:
    """Return in a few words what `raw` lacks or has with another type; None if it has the form.

    `where`: the name of `raw` in its file.
    """
    if not isinstance(raw, Mapping):
        return f"{where or 'the whole'} is no object"
    for name, expected in form.items():
        path = f"{where}.{name}" if where else name
        if name not in raw:
            return f"{path} is missing"
        value = raw[name]
        if expected is None:
            expected = dict.fromkeys(value, NUMBER) if isinstance(value, Mapping) else {}
        if isinstance(expected, Mapping):
            if (lack := lacking(expected, value, path)) is not None:
                return lack
        elif not isinstance(value, expected):
            return f"{path} is {quoted(value)}"
    return None
