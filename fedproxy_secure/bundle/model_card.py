"""Model cards in the form of the Hugging Face hub, for the proxy, the adapter and the fused LLM of a run.

A card says how a model was made, what was measured, what is guaranteed and what was not measured, in the
report's own numbers and sentences. It holds no licence, as only the owner knows the LLM's licence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedproxy_secure.bundle.model_signature import root_digest
from fedproxy_secure.bundle.sbom import ROLES
from fedproxy_secure.bundle.source import Model
from fedproxy_secure.gate.table import measured_text
from fedproxy_secure.report.report import Report
from fedproxy_secure.report.text.table import markdown_table
from fedproxy_secure.report.trilemma import Configuration
from fedproxy_secure.runtime.escape import escaped_line
from fedproxy_secure.runtime.files.names import ADAPTER, FUSED, PROXY

LIBRARY = {PROXY: "transformers", ADAPTER: "peft", FUSED: "transformers"}
AXES = {PROXY: ("ip",), ADAPTER: ("privacy",), FUSED: ("performance", "privacy", "ip")}


def model_card(model: Model, report: Report, settings: Mapping[str, Any]) -> bytes:
    """Return the card of one model, Markdown with a YAML head, in UTF-8.

    Args:
        model: the model.
        report: the report that has its configuration.
        settings: the settings of the run that made it, as plain values.
    """
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        library_name=LIBRARY[model.kind],
        pipeline_tag="text-generation",
        tags=["federated-learning", "fedproxy-secure", model.kind],
    )
    configuration = configuration_of(model, report)
    lines = [
        f"# {report.name}: {model.name}",
        f"This model is {ROLES[model.kind]}. It was made by fedproxy-secure from the settings with SHA-256 "
        f"`{report.config_sha256}`; the run's audit log ends at `{report.audit_head}`.",
        _section("Read first", (*(configuration.unsafe if configuration else ()), *report.notes)),
        _section("How it was made", _made(settings)),
        _section("Data", [_data(settings)]),
    ]
    if configuration is not None:
        lines += [
            "## Measured\n\n" + _measures(configuration, AXES[model.kind]),
            _section("Guarantees", configuration.guarantees),
        ]
    lines += [
        _section("Not measured", report.not_measured),
        "## Files\n\n" + markdown_table(("file", "SHA-256"), sorted(model.files.items()), right=False),
        f"Digest of the whole, as OpenSSF model-signing computes it: `sha256:{root_digest(model.files)}`.",
    ]
    body = "\n\n".join(line for line in lines if line)
    return (str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))).encode()


def configuration_of(model: Model, report: Report) -> Configuration | None:
    """Return the configuration of the report that a model's run belongs to; None if there is none."""
    for configuration in report.configurations:
        if configuration.folders.get(model.seed) == (model.folder or "."):
            return configuration
    return report.configurations[0] if len(report.configurations) == 1 else None


def _made(settings: Mapping[str, Any]) -> Sequence[str]:
    def of(section: str, *keys: str) -> str:
        values = settings.get(section) or {}
        return ", ".join(f"{section}.{k} = {values[k]}" for k in keys if values.get(k) is not None)

    return [
        line
        for line in (
            of("compress", "kind", "remove_ratio", "importance"),
            of("heal", "fit_windows", "steps", "blocks"),
            of("adapter", "kind", "rank", "alpha", "modules"),
            of("fusion", "rule"),
            of("federate", "rounds", "participation", "engine"),
            of("protect", "scheme", "granularity", "weights"),
            of("privacy", "unit", "target_epsilon", "target_delta", "mechanism"),
        )
        if line
    ]


def _data(settings: Mapping[str, Any]) -> str:
    clients = (settings.get("data") or {}).get("clients") or ()
    return (
        f"Tuned on the private records of {len(clients)} clients, which stayed with them. "
        "Nothing of those records is in this card."
    )


def _measures(configuration: Configuration, axes: Sequence[str]) -> str:
    rows = [
        (m.axis, m.key, measured_text(m.estimate), m.estimate.unit)
        for m in configuration.measures
        if m.axis in axes
    ]
    if not rows:
        return "Nothing on these axes was measured."
    return markdown_table(("axis", "measure", "value", "unit"), rows, right=False)


def _section(title: str, lines: Iterable[str]) -> str:
    items = [f"- {escaped_line(line)}" for line in lines]
    return f"## {title}\n\n" + "\n".join(items) if items else ""
