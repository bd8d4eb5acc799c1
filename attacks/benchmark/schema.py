"""Write `benchmark.schema.json` from the classes of results: `python -m attacks.benchmark.schema`.

A test checks that the file is what this module writes, and that written results are valid under it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attacks.benchmark.identity import DIGITS
from attacks.benchmark.results import SCHEMA_VERSION, schema_of_results
from fedproxy_secure.report.schema import closed
from fedproxy_secure.runtime.artifacts import write_bytes

FILE = Path(__file__).parent / "benchmark.schema.json"


def benchmark_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `benchmark.json`, in which every key is required."""
    schema = closed(schema_of_results())
    estimate = schema["$defs"]["Estimate"]["properties"]
    estimate["n"]["minimum"] = 1
    for name in ("settings_sha256", "world_sha256", "model_sha256"):
        schema["$defs"]["Identity"]["properties"][name]["pattern"] = "^[0-9a-f]{64}$"
    for properties in (schema["properties"], schema["$defs"]["CellResult"]["properties"]):
        properties["benchmark_id"]["pattern"] = f"^[0-9a-f]{{{DIGITS}}}$"
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def main() -> None:
    """Write the schema file."""
    write_bytes(FILE, (json.dumps(benchmark_schema(), indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
