"""Accuracy by lm-evaluation-harness: an independent check of `data.evaluate`, in its report format.

It needs the extra `lm-eval`. Nothing is downloaded, because the records are the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedproxy_secure.data.encode import prompt_ids, text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer


@dataclass(frozen=True, kw_only=True)
class HarnessAccuracy:
    """The accuracies that lm-eval reports for a multiple-choice task.

    Args:
        acc: share of records whose most likely choice is the right one, [0, 1].
        acc_norm: the same with log-likelihoods divided by the choices' lengths in characters, [0, 1].
    """

    acc: float
    acc_norm: float


def lm_eval_accuracy(
    model: nn.Module, tokenizer: Tokenizer, records: Sequence[Record], name: str
) -> HarnessAccuracy:
    """Return lm-eval's 0-shot `acc` and `acc_norm` of a causal LM of transformers on records.

    `name` names the task. As in lm-eval's own tasks, a choice is counted without the space that joins it to
    the prompt; that space is the task's delimiter.

    The start token is written into the prompt, as it is everywhere in this project. lm-eval at its defaults
    (`add_bos_token=None`) sends it only where the tokenizer adds it, so for `smollm2` it has other numbers.

    The result equals the means of `choice_correct` if no prompt is cut and a choice has the same tokens
    alone as after its prompt: lm-eval tokenises both together, `choice_correct` each alone. They differ
    where the tokenizer merges tokens across the space between them, or writes a `▁` before every text
    (`Prepend`).

    Raises `DataError` if lm-eval is missing, without records, if only some choices begin with a space, for
    an empty prompt in a tokenizer without a start token, and for a record longer than the model, which
    lm-eval would cut in its own way.
    """
    if not records:
        raise DataError(f"task {name}: has 0 records; must have >= 1")
    delimiter = _delimiter(records)
    try:
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise DataError(f"lm-eval: cannot be imported ({error}); install the extra lm-eval") from error

    training = model.training  # building the harness already puts the model in eval mode
    # The start token is written into the prompt, so that the result does not depend on whether the
    # tokenizer's settings add one. lm-eval then adds none.
    try:
        harness = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            device=str(next(model.parameters()).device),
            add_bos_token=False,
            prefix_token_id=tokenizer.bos_token_id,
            batch_size=8,
        )
        _check_lengths(records, tokenizer, harness.max_length)
        task = ConfigurableTask(config=_task_config(records, tokenizer.bos_token or "", delimiter, name))
        scores = evaluate(harness, {name: task}, bootstrap_iters=0, log_samples=False)
    finally:
        model.train(training)
    results = scores["results"][name]
    return HarnessAccuracy(acc=float(results["acc,none"]), acc_norm=float(results["acc_norm,none"]))


def _delimiter(records: Sequence[Record]) -> str:
    """Return the delimiter between every prompt and every choice: a space, or nothing.

    Raises `DataError` if choices differ in it, because a task of lm-eval has one delimiter.
    """
    begins = {choice.startswith(" ") for record in records for choice in record.choices}
    if len(begins) > 1:
        raise DataError("choices: some begin with a space and some do not; must be the same for all")
    return " " if True in begins else ""


def _task_config(records: Sequence[Record], start: str, delimiter: str, name: str) -> dict[str, Any]:
    """Return a multiple-choice task over local records, with functions so that no text is run as Jinja."""
    from datasets import Dataset

    rows = [
        {
            "prompt": start + r.prompt,
            "choices": [c.removeprefix(delimiter) for c in r.choices],
            "label": r.label,
        }
        for r in records
    ]
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["prompt"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["label"],
        "target_delimiter": delimiter,
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
    }


def _check_lengths(records: Sequence[Record], tokenizer: Tokenizer, limit: int) -> None:
    for index, record in enumerate(records):
        prompt = prompt_ids(record.prompt, tokenizer)
        if not prompt:
            raise DataError(f"record {index}: its prompt has 0 tokens; must have >= 1")
        tokens = len(prompt) + max(len(text_ids(c, tokenizer)) for c in record.choices)
        if tokens > limit:
            raise DataError(f"record {index}: has {tokens} tokens; must have <= {limit}, the model's most")
