"""The same accuracy through lm-evaluation-harness: an independent check, and its report format.

Needs the extra `lm-eval`. Nothing is downloaded: the records are the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedproxy_secure.data.encode import prompt_ids, text_ids
from fedproxy_secure.data.records import Record
from fedproxy_secure.errors import DataError
from fedproxy_secure.models.llm import Tokenizer


def lm_eval_accuracy(model: nn.Module, tokenizer: Tokenizer, records: Sequence[Record], name: str) -> float:
    """Return lm-eval's 0-shot `acc` of a causal LM of transformers on records; `name` names the task.

    Equals `choice_correct(...).mean()` while no prompt is cut and the tokenizer does not merge tokens
    across the space between a prompt and a choice: lm-eval tokenises both together, we each alone.

    Raises `DataError` if lm-eval is missing, without records, for an empty prompt in a tokenizer without
    a start token, and for a record longer than the model, which lm-eval would cut in its own way.
    """
    if not records:
        raise DataError(f"task {name}: has 0 records; must have >= 1")
    try:
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise DataError(f"lm-eval: cannot be imported ({error}); install the extra lm-eval") from error

    training = model.training  # building the harness already puts the model in eval mode
    # The start token is written into the prompt, so that nothing depends on whether this tokenizer's
    # own settings add one. lm-eval then adds none.
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
        task = ConfigurableTask(config=_task_config(records, tokenizer.bos_token or "", name))
        scores = evaluate(harness, {name: task}, bootstrap_iters=0, log_samples=False)
    finally:
        model.train(training)
    return float(scores["results"][name]["acc,none"])


def _task_config(records: Sequence[Record], start: str, name: str) -> dict[str, Any]:
    """Return a multiple-choice task over local records; functions, not templates: no text is Jinja."""
    from datasets import Dataset

    rows = [{"prompt": start + r.prompt, "choices": list(r.choices), "label": r.label} for r in records]
    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["prompt"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["label"],
        "target_delimiter": "",  # a choice begins with its own space
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _check_lengths(records: Sequence[Record], tokenizer: Tokenizer, most: int) -> None:
    for index, record in enumerate(records):
        prompt = prompt_ids(record.prompt, tokenizer)
        if not prompt:
            raise DataError(f"record {index}: its prompt has 0 tokens; must have >= 1")
        tokens = len(prompt) + max(len(text_ids(c, tokenizer)) for c in record.choices)
        if tokens > most:
            raise DataError(f"record {index}: has {tokens} tokens; must have <= {most}, the model's most")
