"""Write `report.schema.json` from the report's classes: `python -m fedproxy_secure.report.schema`.

A test checks that the file equals this module's output, and that a written report is valid under it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedproxy_secure.report.report import SCHEMA_VERSION, adapter
from fedproxy_secure.runtime.artifacts import write_bytes

FILE = Path(__file__).parent / "report.schema.json"


def report_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `report.json`, in which every key is required."""
    schema = closed(adapter().json_schema(mode="serialization"))
    estimate = schema["$defs"]["Estimate"]["properties"]
    estimate["n"]["minimum"] = 1
    estimate["seeds"]["minItems"] = 1
    estimate["metric"]["minLength"] = estimate["how"]["minLength"] = 1
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    schema["properties"]["config_sha256"]["pattern"] = "^[0-9a-f]{64}$"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Require all keys of objects, allow no others, remove defaults, in place; return the schema."""
    for part in (schema, *schema["$defs"].values()):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
            part["required"] = list(part["properties"])
            for value in part["properties"].values():
                value.pop("default", None)
    return schema


def main() -> None:
    """Write the schema file."""
    write_bytes(FILE, (json.dumps(report_schema(), indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
