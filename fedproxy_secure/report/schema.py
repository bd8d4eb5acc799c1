"""Write `report.schema.json` from the report's classes: `python -m fedproxy_secure.report.schema`.

A test holds the file equal to what this module makes, and a written report valid under it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedproxy_secure.artifacts import write_bytes
from fedproxy_secure.report.report import SCHEMA_VERSION, adapter

FILE = Path(__file__).parent / "report.schema.json"


def report_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of `report.json`. Every key is written, so every key is required."""
    made: dict[str, Any] = adapter().json_schema(mode="serialization")
    for part in (made, *made["$defs"].values()):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
            part["required"] = list(part["properties"])
            for value in part["properties"].values():
                value.pop("default", None)
    estimate = made["$defs"]["Estimate"]["properties"]
    estimate["n"]["minimum"] = 1
    estimate["seeds"]["minItems"] = 1
    estimate["metric"]["minLength"] = estimate["how"]["minLength"] = 1
    made["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    made["properties"]["config_sha256"]["pattern"] = "^[0-9a-f]{64}$"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def main() -> None:
    """Write the file."""
    write_bytes(FILE, (json.dumps(report_schema(), indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
