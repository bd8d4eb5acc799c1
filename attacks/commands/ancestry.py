"""The command `attack ancestry`: does a model that was found descend from the owner's LLM?

Exit codes: 0 it does; 1 nothing says so, or fewer than three strangers were named; 2 a wrong option or
file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedproxy_secure.cli.errors import plain_errors
from fedproxy_secure.errors import ConfigError

if TYPE_CHECKING:
    from attacks.extraction.ancestry import Ancestry

UNRELATED = 1
UNTRAINED = 8  # strangers, where most have random weights: of fewer no chance is small
MODEL = "a Hugging Face folder, a .gguf file, demo or smollm2"


def ancestry_command(
    suspect: Annotated[Path, typer.Argument(metavar="SUSPECT", help=f"The model that was found: {MODEL}.")],
    llm: Annotated[Path, typer.Option("--llm", metavar="LLM", help=f"The owner's LLM: {MODEL}.")],
    stranger: Annotated[
        list[Path] | None,
        typer.Option(
            "--stranger",
            metavar="MODEL",
            help="A model with the LLM's tokens that is known not to descend from it; may be repeated. "
            "With fewer than three, models with random weights are added, and nobody is accused.",
        ),
    ] = None,
    error: Annotated[
        float,
        typer.Option(help="How likely a stranger may score as high, at most, if their scores are normal."),
    ] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
) -> None:
    """Test whether a model descends from an LLM, from weights alone, even if it was disguised or tuned.

    Nothing is asked and nothing is trained, and no proxy needs to be marked for it. Exit code 0: it
    descends. 1: nothing says so, or fewer than three strangers were named. 2: a wrong option or file.

    Example: `fedproxy-secure attack ancestry found/model --llm demo --stranger a --stranger b --stranger c`
    """
    with plain_errors(again=None, verdict=True):
        from attacks.extraction.ancestry import ancestry

        if not 0 < error < 1:
            raise ConfigError(f"--error {error:g}: must be between 0 and 1")
        named = tuple(stranger or ())
        found = ancestry(suspect, llm, strangers=named, untrained=UNTRAINED, seed=seed)
        for line in _lines(found, error):
            typer.echo(line)
    raise typer.Exit(0 if found.descends(error) else UNRELATED)


def _lines(found: Ancestry, error: float) -> list[str]:
    """Return what was found as lines of text: scores, what they mean, what they do not."""
    scores = ", ".join(f"{score:.3f}" for score in found.strangers)
    blocks = ", ".join(f"{mine}={theirs}" for mine, theirs in found.pairs)
    count = len(found.strangers)
    lines = [
        f"score      {found.score:.3f}  (1: the LLM's own weights, disguised or not; about 0: others)",
        f"strangers  {scores}{'  (some or all with random weights)' if found.untrained else ''}",
        f"chance     {found.chance:.1e}  that one more such stranger scores as high, if scores are normal",
        f"by rank    {found.by_rank:.2g}  the same without that assumption; "
        f"{count} strangers show no less than {1 / (count + 1):.2g}",
        f"blocks     {blocks}  (suspect=LLM, the likeliest match)",
    ]
    if found.descends(error):
        lines.append(f"descends from the LLM: above every stranger, with a chance of at most {error:g}")
    elif found.alike(error):
        lines.append("as like the LLM as a descendant, beside random weights: no ground for an accusation")
    else:
        lines.append(f"nothing says that it descends from the LLM: {_why(found, error)}")
        lines.append("no proof of the opposite: other invertible maps or long training hide a descendant")
    if found.untrained:
        lines.append(
            "trained strangers score above random weights: before you accuse anybody, name three or more "
            "with --stranger, trained on like text"
        )
    return lines


def _why(found: Ancestry, error: float) -> str:
    """Return why a suspect is not like the LLM."""
    from attacks.extraction.ancestry import LEAST

    if found.score < LEAST:
        return f"the score is below {LEAST:g}"
    if found.score <= max(found.strangers):
        return "a stranger scores as high"
    return f"the chance is above {error:g}"
