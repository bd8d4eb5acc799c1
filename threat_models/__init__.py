"""Who attacks and what they hold: one small declaration for each adversary.

`get(name)` returns one, `every()` returns all. Other packages register theirs under the entry point group
`fedproxy_secure.threat_models`, as functions that return `ThreatModel`s.
"""

from threat_models.base import ThreatModel
from threat_models.registry import every, get

__all__ = ["ThreatModel", "every", "get"]
