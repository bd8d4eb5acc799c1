"""Results of earlier versions, which have an accuracy on free text, are refused with what to delete."""

from pathlib import Path

import pytest

from fedproxy_secure.errors import RunFolderError
from fedproxy_secure.report.measured import check_text_scores, tasks_scored


def test_an_accuracy_on_free_text_is_refused_and_one_on_coded_tasks_is_not():
    place, redo = Path("run/seed-0/result.json"), Path("run/seed-0")
    scored = tasks_scored({"zero_shot": {"coded": "10"}, "fused": {"coded": "10", "letters": "11"}})
    assert scored == {"coded", "letters"}
    check_text_scores(scored, (), place=place, redo=redo)
    with pytest.raises(RunFolderError, match=r"has an accuracy on free text.*delete run/seed-0 and resume"):
        check_text_scores(scored, ("letters",), place=place, redo=redo)
