"""Labels must be whole, and pairs may be named either way; more claims are in test_data.py."""

import pytest

from fedproxy_secure.data.templates import TEMPLATES, to_records
from fedproxy_secure.errors import DataError


@pytest.mark.parametrize("label", [0.7, "0.7", True, None, float("nan"), float("inf"), "yes"])
def test_a_label_that_is_no_whole_number_is_refused(label):
    with pytest.raises(DataError, match="task sst2, row 1: "):
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


def test_every_template_joins_prompt_and_choice_by_one_space_of_the_choice():
    row = {
        "question": "q ", "text": "t ", "premise": "p ", "hypothesis": "h ",
        "prompt": "do ", "response": " done ", "choices": [" x", "y "], "label": 0,
    }  # fmt: skip
    for task in TEMPLATES:
        (made,) = to_records(task, [row])
        assert made.prompt == made.prompt.strip()
        assert all(c[0] == " " and c[1:] == c.strip() for c in made.choices)
