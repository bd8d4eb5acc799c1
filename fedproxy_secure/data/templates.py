"""One fixed template per task, which turns a row, as published or in the local form, into a record.

The local form has its own answers: `choices` (list of texts) and `label` (index), beside `text`, `question`
or `premise` and `hypothesis`.

Wording is that of lm-evaluation-harness in `sst2`, `mrpc`, `rte`, `mnli`, `arc_easy` and `arc_challenge`.
Two tasks differ from it on purpose and are asked as ARC is: `openbookqa`, where lm-eval has the bare stem,
without `Question:` and `Answer:`, and `commonsenseqa`, where lm-eval lists the answers in the prompt and
scores their letters. The wording of all other tasks is our own.

Guarantees: an error names line or row, column, type and length of a value, and never quotes it, because
other people read logs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedproxy_secure.data.chat.messages import chat_record
from fedproxy_secure.data.records import Record
from fedproxy_secure.data.sources import LineRow
from fedproxy_secure.errors import DataError
from fedproxy_secure.runtime.nearest import nearest
from fedproxy_secure.runtime.untrusted import parse_json

Row = dict[str, Any]
Template = Callable[[Row], Record]
# columns that templates write into prompts and answers
TEXTS = (
    "text",
    "sentence",
    "question",
    "question_stem",
    "premise",
    "hypothesis",
    "sentence1",
    "sentence2",
    "prompt",
    "instruction",
    "response",
    "output",
)


def to_records(task: str, rows: Sequence[Row], *, where: str = "") -> list[Record]:
    """Turn rows into records by the task's template.

    Raises `DataError`, which names `where`, the task and the line or row (the first is 1), for a missing
    column, a text or choice that is empty, a right choice that equals another, or a label outside the
    choices.
    """
    template, begin = template_of(task), f"{where}, task {task}" if where else f"task {task}"
    records = []
    for number, row in enumerate(rows, start=1):
        place = f"line {row.line}" if isinstance(row, LineRow) else f"row {number}"
        try:
            _check_texts(row)
            records.append(template(row))
        except KeyError as error:
            raise DataError(f"{begin}, {place}: lacks the column {error}") from None
        except DataError as error:
            raise DataError(f"{begin}, {place}: {error}") from None
        except (ValueError, TypeError, OverflowError) as error:  # its text may quote the row
            kind = type(error).__name__
            raise DataError(f"{begin}, {place}: a column has the wrong form ({kind})") from None
    return records


def template_of(task: str) -> Template:
    """Return the template of a task; raises `DataError` with the nearest known name."""
    if task not in TEMPLATES:
        raise DataError(f"task {task!r}: unknown; {nearest(task, TEMPLATES)}")
    return TEMPLATES[task]


def _check_texts(row: Row) -> None:
    """Raise `DataError` for a value that is no text: of a null, the word None would be trained on."""
    for column in TEXTS:
        if column in row and row[column] is None:
            raise DataError(f"{column}: is null, must be a text")
        if column in row and not _is_text(row[column]):
            raise DataError(f"{column}: is {_form(row[column])}; must be a text")
    if row.get("input") and not _is_text(row["input"]):  # may be null
        raise DataError(f"input: is {_form(row['input'])}; must be a text")


def _is_text(value: Any) -> bool:
    """Return whether a value is a text or a number, which is written out; a missing number is neither."""
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value


def _filled(row: Row, column: str) -> str:
    """Return a column's text; raise `DataError` if it is empty, because there is nothing to learn."""
    text = str(row[column])
    if not text.strip():
        raise DataError(f"{column}: is empty; must be a text; fill it in or leave the row out")
    return text


def _record(prompt: str, choices: Sequence[str], label: Any, *, least: int = 2) -> Record:
    """Return the record with these choices.

    Raises `DataError` for fewer than `least` of them, an empty one, or a right one that equals another.
    Published data sets have records with equal wrong choices.
    """
    for index, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise DataError(f"choices: number {index} is {_form(choice)}; must be a text")
        if not choice.strip():
            raise DataError(
                f"choices: number {index} is empty; must be a text; fill it in or leave the row out"
            )
    if len(choices) < least:
        raise DataError(f"choices: has {len(choices)}; must have >= {least}")
    number = _whole(label)
    if number is None or not 0 <= number < len(choices):
        raise DataError(f"label {_form(label)}: must be the index of a choice, 0 to {len(choices) - 1}")
    texts = [c.strip() for c in choices]
    equal = [index for index, text in enumerate(texts) if text == texts[number] and index != number]
    if equal:
        raise DataError(
            f"choices: number {equal[0]} equals number {number}, the right one; must differ; correct one, "
            "or leave the row out"
        )
    return Record(prompt=prompt.strip(), choices=tuple(f" {text}" for text in texts), label=number)


def _whole(label: Any) -> int | None:
    """Return a label of any type as a whole number; None if it is not one."""
    try:
        number = int(label)
        return number if number == float(label) and not isinstance(label, bool) else None
    except (ValueError, TypeError, OverflowError):
        return None


def _form(value: Any) -> str:
    """Return the description of a value for errors: its type and, if it has one, its length.

    >>> _form("Jane Doe")
    'of type str and length 8'
    """
    kind = f"of type {type(value).__name__}"
    return f"{kind} and length {len(value)}" if isinstance(value, str | bytes | list | dict) else kind


def _own_choices(row: Row) -> tuple[list[str], Any] | None:
    """Return choices and label of a row in the local form (a CSV cell has them as JSON or `a|b`)."""
    choices = row.get("choices")
    if choices is None or choices == "" or isinstance(choices, dict):  # an empty cell of a CSV file is ""
        return None
    if isinstance(choices, str):
        try:
            choices = parse_json(choices) if choices.startswith("[") else choices.split("|")
        except ValueError:
            raise DataError(f"choices {_form(choices)}: begins with [ and is not JSON") from None
    for index, choice in enumerate(choices):
        if not _is_text(choice):
            raise DataError(f"choices: number {index} is {_form(choice)}; must be a text")
    return [str(c) for c in choices], row["label"]


def _question(row: Row, stem: str) -> Record:
    """Return a multiple-choice record from the local form, or from the hub's `choices` and `answerKey`."""
    local_form = _own_choices(row)
    prompt = f"Question: {stem}\nAnswer:"
    if local_form is not None:
        return _record(prompt, *local_form)
    published = row["choices"]
    if not published:
        raise DataError("choices: is empty; must be a list of texts")
    letters = [str(x) for x in published["label"]]
    key = str(row["answerKey"])
    if key not in letters:
        raise DataError(f"answerKey {_form(key)}: must be one of the {len(letters)} labels of choices")
    return _record(prompt, published["text"], letters.index(key))


def _openbookqa(row: Row) -> Record:
    return _question(row, _filled(row, "question_stem" if "question_stem" in row else "question"))


def _multiple_choice(row: Row) -> Record:
    return _question(row, _filled(row, "question"))


def _labelled(prompt: str, row: Row, names: Sequence[str]) -> Record:
    local_form = _own_choices(row)
    choices, label = local_form if local_form is not None else (list(names), row["label"])
    return _record(prompt, choices, label)


def _sst2(row: Row) -> Record:
    text = _filled(row, "sentence" if "sentence" in row else "text")
    return _labelled(
        f"{text}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        row,
        ("negative", "positive"),
    )


def _agnews(row: Row) -> Record:
    return _labelled(
        f"{_filled(row, 'text')}\nQuestion: What is this news about?\nAnswer:",
        row,
        ("world", "sports", "business", "technology"),
    )


def _pair(row: Row) -> tuple[str, str]:
    """Return two texts of a row, named as in GLUE or as in the local form."""
    if "sentence1" in row:
        return _filled(row, "sentence1"), _filled(row, "sentence2")
    return _filled(row, "premise"), _filled(row, "hypothesis")


def _rte(row: Row) -> Record:
    premise, hypothesis = _pair(row)
    return _labelled(f"{premise}\nQuestion: {hypothesis} True or False?\nAnswer:", row, ("True", "False"))


def _mrpc(row: Row) -> Record:
    first, second = _pair(row)
    return _labelled(
        f"Sentence 1: {first}\nSentence 2: {second}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:",
        row,
        ("no", "yes"),
    )


def _mnli(row: Row) -> Record:
    claim = _filled(row, "hypothesis").strip()
    sentence = claim if claim.endswith(".") else f"{claim}."
    return _labelled(
        f"{_filled(row, 'premise')}\nQuestion: {sentence} True, False or Neither?\nAnswer:",
        row,
        ("True", "Neither", "False"),
    )


def _classification(row: Row) -> Record:
    return _labelled(f"{_filled(row, 'text')}\nAnswer:", row, ())


def _instruction(row: Row) -> Record:
    if row.get("messages") not in (None, ""):  # an empty cell of a CSV file is a text
        return chat_record(row["messages"])
    prompt = row["prompt"] if "prompt" in row else row["instruction"]
    extra = f"\n{row['input']}" if row.get("input") else ""
    response = _filled(row, "response" if "response" in row else "output")
    return _record(f"{prompt}{extra}\nResponse:", [response], 0, least=1)


ONE_CHOICE = ("instruction",)  # tasks whose records have one choice, so that no answer can be wrong
TEMPLATES: dict[str, Template] = {
    "openbookqa": _openbookqa,
    "arc_easy": _multiple_choice,
    "arc_challenge": _multiple_choice,
    "commonsenseqa": _multiple_choice,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "rte": _rte,
    "mnli": _mnli,
    "agnews": _agnews,
    "multiple_choice": _multiple_choice,
    "classification": _classification,
    "instruction": _instruction,
}
