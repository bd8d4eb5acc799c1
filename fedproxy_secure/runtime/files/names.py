"""What files and folders of a run are called, where several packages need the name."""

from __future__ import annotations

FEDERATION = "federation"  # of a seed: what its rounds left
TRANSCRIPT = "transcript"  # below it: a recorded run's messages and every party's state
