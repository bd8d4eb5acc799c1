"""Who attacks and what they hold: one small declaration an adversary.

`get(name)` finds one, `every()` lists them. Others register theirs under the entry point group
`fedproxy_secure.threat_models`, as functions that return `ThreatModel`s.
"""

from threat_models.base import ThreatModel, every, get

__all__ = ["ThreatModel", "every", "get"]
