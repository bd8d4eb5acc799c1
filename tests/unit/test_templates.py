"""Labels must be whole, pairs may be named either way, and no error quotes a row; more in test_data.py."""

import traceback

import pytest

from fedproxy_secure.data.templates import ONE_CHOICE, TEMPLATES, to_records
from fedproxy_secure.errors import DataError


@pytest.mark.parametrize("label", [0.7, "0.7", True, None, float("nan"), float("inf"), "yes"])
def test_a_label_that_is_no_whole_number_is_refused(label):
    with pytest.raises(DataError, match="task sst2, row 2: "):
        to_records("sst2", [{"text": "fine", "label": 0}, {"text": "bad", "label": label}])


@pytest.mark.parametrize("label", [1, 1.0, "1"])
def test_a_whole_label_of_any_type_is_read(label):
    (made,) = to_records("sst2", [{"text": "x", "label": label}])
    assert made.label == 1


@pytest.mark.parametrize("task", ["mrpc", "rte"])
def test_pairs_read_alike_under_both_names(task):
    glue = {"sentence1": "a", "sentence2": "b", "label": 1}
    ours = {"premise": "a", "hypothesis": "b", "label": 1}
    assert to_records(task, [glue]) == to_records(task, [ours])


@pytest.mark.parametrize(
    ("task", "row", "prompt", "choices"),
    [
        ("sst2", {"sentence": "s"}, "s\nQuestion: Is this sentence positive or negative?\nAnswer:",
         ("negative", "positive")),
        ("mrpc", {"sentence1": "a", "sentence2": "b"},
         "Sentence 1: a\nSentence 2: b\nQuestion: Do both sentences mean the same thing?\nAnswer:",
         ("no", "yes")),
        ("rte", {"sentence1": "a.", "sentence2": "b."}, "a.\nQuestion: b. True or False?\nAnswer:",
         ("True", "False")),
        ("mnli", {"premise": "a", "hypothesis": "b "},
         "a\nQuestion: b. True, False or Neither?\nAnswer:", ("True", "Neither", "False")),
        ("mnli", {"premise": "a", "hypothesis": "b."},
         "a\nQuestion: b. True, False or Neither?\nAnswer:", ("True", "Neither", "False")),
        ("arc_easy", {"question": "q?", "choices": ["x", "y"]}, "Question: q?\nAnswer:", ("x", "y")),
    ],
)  # fmt: skip
def test_tasks_whose_wording_is_lm_evals_have_it_to_the_letter(task, row, prompt, choices):
    (made,) = to_records(task, [{**row, "label": 0}])
    assert made.prompt == prompt
    assert made.choices == tuple(f" {choice}" for choice in choices)


def test_every_template_joins_prompt_and_choice_by_one_space_of_the_choice():
    row = {
        "question": "q ", "text": "t ", "premise": "p ", "hypothesis": "h ",
        "prompt": "do ", "response": " done ", "choices": [" x", "y "], "label": 0,
    }  # fmt: skip
    for task in TEMPLATES:
        (made,) = to_records(task, [row])
        assert made.prompt == made.prompt.strip()
        assert all(c[0] == " " and c[1:] == c.strip() for c in made.choices)


@pytest.mark.parametrize("choice", [None, True, float("nan"), ["x"], {}])
@pytest.mark.parametrize("task", ["classification", "arc_easy", "sst2"])
def test_an_answer_that_is_no_text_is_refused_and_not_trained_on_as_none(task, choice):
    row = {"text": "t", "question": "q", "choices": ["x", choice], "label": 0}
    with pytest.raises(DataError, match=rf"task {task}, row 1: choices: number 1 is of type \w+"):
        to_records(task, [row])


def test_numbers_among_the_answers_are_written_out():
    (made,) = to_records("classification", [{"text": "t", "choices": [1, 2.5, "x"], "label": 1}])
    assert made.choices == (" 1", " 2.5", " x")


@pytest.mark.parametrize("value", [True, float("nan"), ["x"], {"x": 1}])
def test_a_text_column_that_holds_something_else_is_refused(value):
    for task, column in (("sst2", "text"), ("instruction", "input")):
        row = {"text": "t", "prompt": "p", "response": "r", "label": 0, column: value}
        with pytest.raises(DataError, match=rf"row 1: {column}: is of type \w+.*; must be a text"):
            to_records(task, [row])


def test_an_empty_cell_of_choices_is_as_if_it_were_not_there():
    (made,) = to_records("sst2", [{"text": "t", "choices": "", "label": "1"}])
    assert made.choices == (" negative", " positive")
    with pytest.raises(DataError, match="row 1: choices: has 0; must have >= 2"):
        to_records("classification", [{"text": "t", "choices": "", "label": "0"}])
    for empty in ("", None):
        with pytest.raises(DataError, match="row 1: choices: is empty; must be a list of texts"):
            to_records("multiple_choice", [{"question": "q", "choices": empty, "label": "0"}])


@pytest.mark.parametrize("task", [task for task in TEMPLATES if task not in ONE_CHOICE])
@pytest.mark.parametrize("choices", [["x"], "x", '["x"]'])
def test_a_record_that_cannot_be_answered_wrong_is_refused(task, choices):
    row = {"question": "q", "text": "t", "premise": "p", "hypothesis": "h", "choices": choices, "label": 0}
    with pytest.raises(DataError, match="row 1: choices: has 1; must have >= 2"):
        to_records(task, [row])


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("sst2", {"text": "t \ud800", "label": 0}),
        ("classification", {"text": "t", "choices": ["x", "\udfff"], "label": 0}),
        ("instruction", {"prompt": "p", "response": "\ud800 r"}),
        (
            "instruction",
            {"messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}]},
        ),
        (
            "instruction",
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\ud800"}]},
        ),
    ],
)
def test_half_a_surrogate_pair_is_named_with_its_row_before_a_tokenizer_meets_it(task, row):
    with pytest.raises(DataError, match=f"source f, task {task}, row 1: has half of a surrogate pair"):
        to_records(task, [row], where="source f")


@pytest.mark.parametrize("task", [task for task in TEMPLATES if task not in ONE_CHOICE])
@pytest.mark.parametrize(
    ("choices", "label", "says"),
    [
        (["x", ""], 0, "choices: number 1 is empty; must be a text; fill it in or leave the row out"),
        ("x| ", 0, "choices: number 1 is empty"),
        (["x", "x"], 0, "choices: number 1 equals number 0, the right one; must differ; correct one"),
        (["x", "y", " x "], 2, "choices: number 0 equals number 2, the right one"),
    ],
)
def test_answers_of_which_none_is_the_only_right_one_are_refused(task, choices, label, says):
    row = {"question": "q", "text": "t", "premise": "p", "hypothesis": "h", "choices": choices}
    with pytest.raises(DataError, match=f"row 1: {says}"):
        to_records(task, [{**row, "label": label}])


def test_wrong_answers_may_be_equal_as_in_published_data_sets():
    row = {"question": "q", "choices": ["sky", "roots", "sky", "leaves"], "label": 3}
    assert len(to_records("openbookqa", [row])) == 1


@pytest.mark.parametrize(
    ("task", "column"),
    [
        ("classification", "text"),
        ("sst2", "sentence"),
        ("agnews", "text"),
        ("mnli", "premise"),
        ("mnli", "hypothesis"),
        ("rte", "sentence2"),
        ("openbookqa", "question_stem"),
        ("arc_easy", "question"),
        ("instruction", "response"),
        ("instruction", "output"),
    ],
)
def test_a_record_whose_text_is_empty_is_refused(task, column):
    row = {"premise": "p", "hypothesis": "h", "sentence1": "s", "prompt": "p", "choices": ["a", "b"]}
    if task == "mnli":
        del row["sentence1"]
    with pytest.raises(DataError, match=f"row 1: {column}: is empty; must be a text; fill it in or leave"):
        to_records(task, [{**row, "label": 0, column: " "}])


# --- what errors say of a row

SAID = "Jane Doe has HIV"
HUB = {"text": [SAID, "y"], "label": [SAID, "B"]}


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("sst2", {"text": SAID, "label": SAID}),
        ("sst2", {"text": SAID, "label": [SAID]}),
        ("sst2", {"text": SAID, "label": 10.5}),
        ("sst2", {"text": SAID, "label": 77777}),
        ("sst2", {"text": SAID}),
        ("sst2", {"sentence": None, "text": SAID, "label": 0}),
        ("classification", {"text": SAID, "choices": [], "label": 0}),
        ("classification", {"text": SAID, "choices": f'["{SAID}"', "label": 0}),
        ("classification", {"text": SAID, "choices": f"{SAID}|b", "label": SAID}),
        ("classification", {"text": SAID, "choices": 77777, "label": 0}),
        ("arc_easy", {"question": SAID, "choices": HUB, "answerKey": f"{SAID} " * 50}),
        ("arc_easy", {"question": SAID, "choices": {**HUB, "text": [SAID, 77777]}, "answerKey": "B"}),
        ("arc_easy", {"question": SAID, "choices": {"label": ["B"], "text": None}, "answerKey": "B"}),
        ("arc_easy", {"question": SAID, "choices": {SAID: 1}, "answerKey": "B"}),
    ],
)
def test_an_error_names_task_and_row_and_quotes_nothing_of_the_row(task, row):
    with pytest.raises(DataError, match=f"task {task}, row 1: ") as raised:
        to_records(task, [row])
    told = "".join(traceback.format_exception(raised.value))
    told = told.split("DataError:", 1)[1]
    for part in (SAID, "Jane", "HIV", "77777", "10.5"):
        assert part not in told


def test_an_error_says_which_column_it_is_and_of_what_form_its_value_is():
    with pytest.raises(
        DataError, match=r"row 1: label of type str and length 16: must be the index of a choice, 0 to 1"
    ):
        to_records("sst2", [{"text": "x", "label": SAID}])
    row = {"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": SAID}
    with pytest.raises(DataError, match="row 1: answerKey of type str and length 16: must be"):
        to_records("arc_easy", [row])
