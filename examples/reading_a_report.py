"""Read a report in pandas: the trilemma as a table, the attacks behind it, where the numbers come from.

    pip install pandas
    python examples/reading_a_report.py runs/demo_trilemma/report.json

A script with `# %%` cells: editors that know them run it cell by cell; jupytext makes a notebook of it.
"""

# %%
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

path = Path(sys.argv[1])
report = json.loads(path.read_text(encoding="utf-8"))
print(f"{report['name']}: seeds {report['seeds']}, made by: {report['command']}")

# %% [markdown]
# ## The trilemma: one row for each configuration and measure, with interval, sample size and source

# %%
measures = pd.DataFrame(
    {"configuration": configuration["name"], "unsafe": bool(configuration["unsafe"])}
    | {key: measure[key] for key in ("axis", "key", "better", "source")}
    | {key: measure["estimate"][key] for key in ("value", "low", "high", "n", "unit")}
    for configuration in report["configurations"]
    for measure in configuration["measures"]
)
trilemma = measures.pivot(index=["axis", "key"], columns="configuration", values="value")
print(trilemma.to_string(float_format="{:.4g}".format))

# %% [markdown]
# ## What the attacks found: the outcomes, and the headline of each beside its controls


# %%
def value_of(estimate: dict[str, Any] | None) -> float:
    """The number of an estimate; NaN where nothing was measured."""
    return float("nan") if estimate is None else estimate["value"]


findings = pd.DataFrame(
    {
        "configuration": configuration["name"],
        "attack": f"{finding['id']} {finding['attack']}",
        "view": finding["view"],
        "outcome": finding["outcome"],
        "headline": value_of(next(iter(finding["estimates"]), None)),
        "positive": value_of(finding["positive"]),
        "negative": value_of(finding["negative"]),
    }
    for configuration in report["configurations"]
    for finding in configuration["findings"]
)
if len(findings):
    print(pd.crosstab(findings["attack"], [findings["configuration"], findings["outcome"]]).to_string())
    print(findings[findings["outcome"] == "SUCCEEDED"].round(3).to_string(index=False))

# %% [markdown]
# ## Which numbers have wide intervals? A number without an interval was counted, or is a single measurement

# %%
wide = measures.assign(width=measures["high"] - measures["low"]).dropna(subset="width")
print(
    wide.nlargest(5, "width")[["configuration", "key", "value", "low", "high", "n"]].to_string(index=False)
)

# %% [markdown]
# ## Where a number comes from: a path beside the report and, after `#`, the entry in that file

# %%
for source in measures["source"].unique()[:5]:
    file, _, entry = source.partition("#")
    print(f"{path.parent / file} -> {entry}")

# %% [markdown]
# ## What the report says about itself: read these before you quote a number

# %%
for heading in ("notes", "guarantees", "not_measured"):
    for sentence in report[heading]:
        print(f"{heading}: {sentence}")
