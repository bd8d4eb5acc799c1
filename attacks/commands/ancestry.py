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
UNTRAINED = 8  # strangers with random weights; with fewer, no chance would be small
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
        result = ancestry(suspect, llm, strangers=named, untrained=UNTRAINED, seed=seed)
        for line in _result_lines(result, error):
            typer.echo(line)
    raise typer.Exit(0 if result.descends(error) else UNRELATED)


def _result_lines(result: Ancestry, error: float) -> list[str]:
    """Return the result as lines of text: scores, what they mean, and what they do not prove."""
    scores = ", ".join(f"{score:.3f}" for score in result.strangers)
    blocks = ", ".join(f"{suspect}={llm}" for suspect, llm in result.pairs)
    count = len(result.strangers)
    lines = [
        f"score      {result.score:.3f}  (1: the LLM's own weights, disguised or not; about 0: others)",
        f"strangers  {scores}{'  (some or all with random weights)' if result.untrained else ''}",
        f"chance     {result.chance:.1e}  that one more such stranger scores as high, if scores are normal",
        f"by rank    {result.by_rank:.2g}  the same without that assumption; "
        f"{count} strangers show no less than {1 / (count + 1):.2g}",
        f"blocks     {blocks}  (suspect=LLM, the likeliest match)",
    ]
    if result.descends(error):
        lines.append(f"descends from the LLM: above every stranger, with a chance of at most {error:g}")
    elif result.alike(error):
        lines.append("as like the LLM as a descendant, beside random weights: no ground for an accusation")
    else:
        lines.append(f"nothing says that it descends from the LLM: {_why(result, error)}")
        lines.append("no proof of the opposite: other invertible maps or long training hide a descendant")
    if result.untrained:
        lines.append(
            "trained strangers score above random weights: before you accuse anybody, name three or more "
            "with --stranger, trained on like text"
        )
    return lines


def _why(result: Ancestry, error: float) -> str:
    """Return why a suspect is not like the LLM."""
    from attacks.extraction.ancestry import LEAST

    if result.score < LEAST:
        return f"the score is below {LEAST:g}"
    if result.score <= max(result.strangers):
        return "a stranger scores as high"
    return f"the chance is above {error:g}"
