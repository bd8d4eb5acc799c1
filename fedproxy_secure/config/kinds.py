"""The names that settings may use for protections, fusion rules, methods and compressions, and their homes.

Settings name a kind by a word (`protect.scheme: masking`). Each word leads to one object in one module,
loaded when it is first needed. Other projects add words by entry points (see
`fedproxy_secure.runtime.registry`). The classes of the objects are imported for type checkers only: they
stand in layers above this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedproxy_secure.runtime.registry import Registry

if TYPE_CHECKING:
    from fedproxy_secure.compress.base import Compression
    from fedproxy_secure.experiments.method import Method
    from fedproxy_secure.federate.fusion.rule import FusionRule
    from fedproxy_secure.protect.base import Protection

PROTECTIONS: Registry[Protection] = Registry(
    kind="protection",
    base="fedproxy_secure.protect.base:Protection",
    texts=("name", "title"),
    named_by="name",
    group="fedproxy_secure.protections",
    own={
        "unsafe_plaintext": "fedproxy_secure.protect.plaintext:PLAINTEXT",
        "masking": "fedproxy_secure.protect.masking:MASKING",
        "ckks": "fedproxy_secure.protect.ckks:CKKS",
    },
)
FUSION_RULES: Registry[FusionRule] = Registry(
    kind="fusion rule",
    base="fedproxy_secure.federate.fusion.rule:FusionRule",
    texts=("name",),
    named_by="name",
    group="fedproxy_secure.fusion_rules",
    own={
        "fedavg": "fedproxy_secure.federate.fusion.averages:FEDAVG",
        "fedadam": "fedproxy_secure.federate.fusion.averages:FEDADAM",
        "ties": "fedproxy_secure.federate.fusion.elections:TIES",
        "h_ties": "fedproxy_secure.federate.fusion.elections:H_TIES",
    },
)
# module of `fedproxy_secure.experiments.methods` -> the methods in it, as constants in capitals
_METHODS: dict[str, tuple[str, ...]] = {
    "references": ("zero_shot", "zero_shot_proxy", "centralised_llm", "centralised_proxy", "local_only"),
    "whole_llm": ("fedavg_llm", "fedavg_llm_lr"),
    "fedot": ("fedot", "fedot_equal_bytes", "fedot_equal_bytes_lr"),
    "fedproxy": (
        *("fedproxy_fedavg", "fedproxy_fedavg_lr", "fedproxy_fedadam", "fedproxy_fedprox"),
        *("fedproxy_ties", "fedproxy_h_ties", "fedproxy_h_ties_pcr"),
        *("exact_fedavg_lr", "exact_h_ties", "exact_h_ties_pcr"),
    ),
    "masked": ("masked_fedavg", "masked_fedavg_lr", "masked_h_ties_coordinate", "masked_h_ties_block"),
}
METHODS: Registry[Method] = Registry(
    kind="method",
    base="fedproxy_secure.experiments.method:Method",
    texts=("name", "title"),
    named_by="name",
    group="fedproxy_secure.methods",
    own={
        name: f"fedproxy_secure.experiments.methods.{module}:{name.upper()}"
        for module, names in _METHODS.items()
        for name in names
    },
)
COMPRESSIONS: Registry[Compression] = Registry(
    kind="compression",
    base="fedproxy_secure.compress.base:Compression",
    texts=("name", "title"),
    named_by="name",
    group="fedproxy_secure.compressions",
    own={
        "drop_blocks": "fedproxy_secure.compress.drop_blocks:DROP_BLOCKS",
        **{
            name: f"fedproxy_secure.compress.defences.{name}:{name.upper()}"
            for name in ("low_rank", "width", "withheld_bottom", "quantised", "rotated")
        },
    },
)
