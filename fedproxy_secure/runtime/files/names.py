"""Names of the files and folders of runs, comparisons and matrices."""

from __future__ import annotations

# in the folder of a run, a matrix or a comparison
MANIFEST = "manifest.json"
SETTINGS_FILE = "config.yaml"
ENVIRONMENT = "environment.json"
RUNNING = "running.json"
AUDIT_LOG = "audit.jsonl"
TRACKING = "tracking"

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

# below the folder of a seed: the files of its rounds
FEDERATION = "federation"  # the folder of the files below
JOB = "job.json"  # the job of the server app
ROUNDS = "rounds.jsonl"
WAITS = "waits.json"  # the clients that the server waits for
TROUBLE = "trouble.json"  # why the server app failed
LEAKAGE = "ledger.jsonl"
PRIVACY = "privacy"  # the privacy ledgers of clients, if all run on one machine
PRIVACY_LEDGER = ".ledger.jsonl"  # suffix after the client's name
ROSTER = "roster.json"  # possible participants of secure aggregation; also beside clients' keys
TRANSCRIPT = "transcript"  # a recorded run's messages and every party's state

# below the folder of a run: the findings of attacks
ATTACKS = "attacks"
FINDINGS = f"{ATTACKS}/results.json"
ATTACK_EVENTS = f"{ATTACKS}/events.jsonl"
ATTACK_FILES = (FINDINGS, ATTACK_EVENTS)

# in the folder of a matrix or a comparison
CELLS = "cells"
BASELINES = "baselines"  # of a matrix: the centralised LLM
PROXIES = "proxies"
PROXY_RECORD = "proxy.json"  # of each proxy
CONSTANT_ANSWERS = "constant_answers.json"  # of a comparison

# in the folder of a matrix's cell, or of a ceiling below its baselines
CELL_DONE = "cell.json"
CELL_FAILED = "failed.json"


def seed_folder(seed: int) -> str:
    """Return the name of a seed's folder, below its run's.

    >>> seed_folder(0)
    'seed-0'
    """
    return f"{SEED_PREFIX}{seed}"


def seed_of(folder: str) -> int | None:
    """Return the seed whose folder has this name; None for any other folder.

    >>> seed_of("seed-0")
    0
    """
    number = folder.removeprefix(SEED_PREFIX)
    return int(number) if number != folder and number.isdecimal() else None
