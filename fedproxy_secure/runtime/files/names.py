"""What files and folders of a run are called, where several packages need the name."""

from __future__ import annotations

# in the folder of a run, a matrix or a comparison
MANIFEST = "manifest.json"
SETTINGS_FILE = "config.yaml"
ENVIRONMENT = "environment.json"
RUNNING = "running.json"
AUDIT_LOG = "audit.jsonl"

# its report
SIGNATURE = "report.sig"
REPORT_JSON = "report.json"
REPORT_PAGE = "report.html"
REPORT_MARKDOWN = "report.md"
REPORT_SARIF = "report.sarif"

# in the folder of a seed
SEED_PREFIX = "seed-"
PLAN = "plan.json"
HEALING = "healing.safetensors"
RESULT = "result.json"
PROXY, ADAPTER, FUSED = "proxy", "adapter", "fused"
MODEL_FOLDERS = (PROXY, ADAPTER, FUSED)

# of a seed: what its rounds left
FEDERATION = "federation"
TRANSCRIPT = "transcript"  # below it: a recorded run's messages and every party's state


def seed_folder(seed: int) -> str:
    """Return the name of a seed's folder, below its run's.

    >>> seed_folder(0)
    'seed-0'
    """
    return f"{SEED_PREFIX}{seed}"
