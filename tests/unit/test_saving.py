"""What a model, a method or a proxy leaves is written whole, or refused in one line."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedproxy_secure.compress.proxy import Proxy, save_model
from fedproxy_secure.errors import DataError, ModelError, RunFolderError
from fedproxy_secure.experiments.results import Accuracy, MethodResult
from fedproxy_secure.models.llm import load_llm
from fedproxy_secure.runtime.files.saving import saving
from tests.support.tiny import save_tiny

RIGHT = Accuracy(correct=(True,), correct_norm=(True,))


def test_a_model_that_cannot_be_written_is_one_line(tmp_path):
    save_tiny(tmp_path / "llm")
    model, tokenizer = load_llm(tmp_path / "llm", device="cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"file/proxy: cannot be written: Not a directory$"):
        save_model(model, tokenizer, tmp_path / "file" / "proxy")


def test_what_safetensors_cannot_write_is_one_line(tmp_path):
    with pytest.raises(RunFolderError, match="cannot be written: ") as refused, saving(tmp_path):
        save_file({"weight": torch.zeros(4)}, tmp_path / "no" / "such" / "folder.safetensors")
    assert "\n" not in str(refused.value)


def test_a_full_disk_in_the_words_of_tokenizers_is_one_line(tmp_path):
    with (
        pytest.raises(RunFolderError, match="cannot be written: No space left on device"),
        saving(tmp_path),
    ):
        raise Exception("No space left on device (os error 28)")


def test_errors_that_are_no_full_disk_are_not_called_one(tmp_path):
    with pytest.raises(ZeroDivisionError), saving(tmp_path):
        _ = 1 // 0


def test_numbers_of_numpy_in_a_methods_result_become_plain_ones():
    result = MethodResult(fused={"a": RIGHT}, upload_bytes=np.int64(8), scale=np.float32(0.5))
    assert (type(result.upload_bytes), type(result.scale)) == (int, float)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"upload_bytes": 1.5}, {"aligned_windows": 1.5}, {"scale": "half"}),
        *({"fused": {"a": 0.5}}, {"tuned": [RIGHT]}),
        *({"scale": float("nan")}, {"scale": np.float32("inf")}, {"scale": 10**400}),
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_a_result_that_no_record_can_hold_is_refused_in_one_line(wrong):
    with pytest.raises(DataError, match=r"^result of a method: "):
        MethodResult(**{"fused": {"a": RIGHT}, **wrong})


def test_what_a_proxys_record_says_must_be_plain_values():
    kept = {"lifting": lambda tensors: {}, "importance": (np.float32(0.5),)}
    assert type(Proxy(model=torch.nn.Linear(1, 1), **kept).importance[0]) is float
    with pytest.raises(ModelError, match="proxy: details: must be plain JSON values"):
        Proxy(model=torch.nn.Linear(1, 1), **kept, details={"rank": np.int64(3)})
    for wrong in (float("nan"), np.float32("inf")):
        with pytest.raises(ModelError, match=r"proxy: importance=.*: must be finite numbers"):
            Proxy(model=torch.nn.Linear(1, 1), **kept | {"importance": (0.5, wrong)})
