"""From rows to accuracies: sources, templates, token batches, log-likelihoods."""

import json

import numpy as np
import pytest
import torch

from fedproxy_secure.config import ClientConfig, parse_config
from fedproxy_secure.data.choices import choice_loglikelihoods
from fedproxy_secure.data.encode import batch_loss, encode_records, training_batch
from fedproxy_secure.data.evaluate import _per_character, choice_correct, perplexity, text_windows
from fedproxy_secure.data.records import Record
from fedproxy_secure.data.sources import read_rows
from fedproxy_secure.data.tasks import load_task, load_tasks, truncated_prompts, warn_of_trained_tests
from fedproxy_secure.data.templates import TEMPLATES, to_records
from fedproxy_secure.errors import DataError
from tests.support.tiny import tiny_llama, tiny_settings, tiny_tokenizer, write_records

ROWS = [{"text": "good", "choices": ["no", "yes"], "label": 1}, {"text": "bad", "label": 0}]


def record(prompt="ab", choices=(" c", " de"), label=0):
    return Record(prompt=prompt, choices=choices, label=label)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_same_rows_come_out_of_every_file_format(tmp_path, suffix):
    import pandas as pd

    rows = [{"text": "a, b", "label": "0"}, {"text": 'c "d"', "label": "1"}]
    frame, path = pd.DataFrame(rows), tmp_path / f"x.train.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    source = f"{{data}}/x.{{split}}.{suffix}"
    found = read_rows(source, "train", root=str(tmp_path), limit=None)
    assert [{k: str(v) for k, v in row.items()} for row in found] == rows
    assert len(read_rows(source, "train", root=str(tmp_path), limit=1)) == 1


def test_a_local_datasets_folder_is_read_through_datasets(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "x", "label": 0}) + "\n")
    rows = read_rows(f"hub:{tmp_path}", "train", root=None, limit=None)
    assert rows == [{"text": "x", "label": 0}]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{data}/x.jsonl", "needs data.root"),
        ("/nowhere/x.jsonl", "/nowhere/x.jsonl: cannot be read: No such file"),
        ("/nowhere/x.parquet", "/nowhere/x.parquet: cannot be read: No such file"),
        ("x.txt", "must end in one of .jsonl, .csv, .parquet"),
    ],
)
def test_an_unusable_source_is_one_line(source, line):
    with pytest.raises(DataError, match=line.replace(".", r"\.")):
        read_rows(source, "train", root=None, limit=None)


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{oops\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: is not JSON"):
        read_rows(str(tmp_path / "x.jsonl"), "train", root=None, limit=None)


@pytest.mark.parametrize(
    ("task", "row", "answer"),
    [
        ("openbookqa", {"question_stem": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                        "answerKey": "B"}, " y"),
        ("arc_easy", {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]},
                      "answerKey": "1"}, " x"),
        ("arc_challenge", {"question": "q", "choices": ["x", "y"], "label": 1}, " y"),
        ("commonsenseqa", {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                           "answerKey": "A"}, " x"),
        ("sst2", {"sentence": "s", "label": 1}, " positive"),
        ("sst2", {"text": "s", "choices": ["bad", "good"], "label": 0}, " bad"),
        ("mrpc", {"sentence1": "a", "sentence2": "b", "label": 0}, " no"),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": 1}, " False"),
        ("rte", {"premise": "a", "hypothesis": "b", "choices": ["e", "n"], "label": 1}, " n"),
        ("mnli", {"premise": "a", "hypothesis": "b", "label": 1}, " Neither"),
        ("agnews", {"text": "t", "label": 3}, " technology"),
        ("multiple_choice", {"question": "q", "choices": '["x", "y"]', "label": "1"}, " y"),
        ("classification", {"text": "t", "choices": "x|y", "label": "0"}, " x"),
        ("instruction", {"instruction": "do", "output": "done"}, " done"),
    ],
)  # fmt: skip
def test_templates_read_published_columns_and_our_own(task, row, answer):
    (made,) = to_records(task, [row])
    assert made.choices[made.label] == answer
    assert made.prompt.endswith((":", "?"))


def test_the_papers_eight_tasks_have_templates():
    eight = "openbookqa arc_easy arc_challenge commonsenseqa sst2 mrpc rte mnli"
    assert set(eight.split()) <= TEMPLATES.keys()


@pytest.mark.parametrize(
    ("task", "row", "line"),
    [
        ("sst", {}, r"task 'sst': unknown; did you mean 'sst2'\?"),
        ("sst2", {"sentence": "s", "label": 2}, "row 1: label of type int: must be the index of a choice"),
        ("sst2", {"sentence": "s", "label": -1}, "label of type int: must be"),
        ("sst2", {"label": 1}, "row 1: lacks the column 'text'"),
        ("sst2", {"sentence": None, "label": 1}, "row 1: sentence: is null"),
        ("arc_easy", {"question": "q", "choices": {"text": [3], "label": ["A"]}, "answerKey": "A"},
         "choices: number 0 is of type int; must be a text"),
        ("arc_easy", {"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "C"},
         "answerKey of type str and length 1: must be one of the 1 labels"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(task, row, line):
    with pytest.raises(DataError, match=line):
        to_records(task, [row])


def test_a_client_with_too_few_records_is_refused():
    with pytest.raises(DataError, match=r"client a: has 1 training records; must have >= 2"):
        load_task(ClientConfig(name="a", task="clinic", train_records=1), root=None)


def test_a_part_with_too_few_rows_is_named_with_its_split_and_the_rows_there_are(tmp_path):
    for split in ("train", "test"):
        text = json.dumps({"text": "t", "choices": ["a", "b"], "label": 0}) + "\n"
        (tmp_path / f"c.{split}.jsonl").write_text(text * 30)
    client = {"name": "a", "task": "classification", "source": f"{tmp_path}/c.{{split}}.jsonl"}
    told = r"has 0 training records; must have >= 2; train_split='train\[100:200\]' of 30 rows"
    with pytest.raises(DataError, match=told):
        load_task(ClientConfig(**client, train_split="train[100:200]"), root=None)


def test_a_record_becomes_start_prompt_response_end():
    (item,) = encode_records([record()], tiny_tokenizer(), max_tokens=16).items
    assert item.ids[0] == 1
    assert item.ids[-1] == 2
    assert tiny_tokenizer().decode(item.ids[1 : item.response_start]) == "ab"
    assert tiny_tokenizer().decode(item.ids[item.response_start : -1]) == " c"


def test_a_long_prompt_loses_its_beginning_and_is_counted():
    found = encode_records([record(prompt="x" * 50 + "END"), record()], tiny_tokenizer(), max_tokens=10)
    assert found.truncated == 1
    text = tiny_tokenizer().decode(found.items[0].ids)
    assert text.endswith("END c</s>")
    assert len(found.items[0].ids) == 10
    assert found.items[0].ids[0] == 1


def test_prompts_that_evaluation_cuts_for_the_longest_choice_are_counted(tmp_path):
    """Training makes room for the right choice alone."""
    row = {"text": "0123456789", "choices": ["a", "b" * 20], "label": 0}
    rows = {"train": [row] * 2, "test": [row, {**row, "choices": ["a", "b"]}]}
    for split, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"c.{split}.jsonl").write_text(text)
    raw = tiny_settings(tmp_path)
    client = {"name": "c", "task": "classification", "source": f"{tmp_path}/c.{{split}}.jsonl"}
    raw["data"] |= {"clients": [client], "max_tokens": 32}
    config = parse_config(
        {**raw, "federate": {"min_clients": 1}, "protect": {"scheme": "unsafe_plaintext"}}
    )
    assert truncated_prompts(config, load_tasks(config.data)) == 1


def test_test_records_that_a_client_also_trains_on_are_counted_in_one_warning(tmp_path, caplog):
    rows = [{"text": f"t{n}", "choices": ["a", "b"], "label": 0} for n in range(3)]
    clients = []
    for name, tests in (("same", rows), ("apart", [{**rows[0], "label": 1}])):
        for split, lines in (("train", rows), ("test", tests)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / f"{name}.{split}.jsonl").write_text(text)
        source = f"{tmp_path}/{name}.{{split}}.jsonl"
        clients.append({"name": name, "task": "classification", "source": source, "learn": "text"})
    config = parse_config({"data": {"clients": clients}, "protect": {"scheme": "unsafe_plaintext"}})
    warn_of_trained_tests(config, load_tasks(config.data))
    (said,) = caplog.messages
    assert "equal a training record of the same client: same 3 of 3; accuracies count them" in said
    caplog.clear()
    private = config.changed(privacy=config.privacy.model_copy(update={"unit": "record"}))
    warn_of_trained_tests(private, load_tasks(config.data))
    assert not caplog.messages


def test_a_response_without_room_for_a_prompt_is_refused():
    with pytest.raises(DataError, match="record 0: its response has"):
        encode_records([record(choices=(" " + "x" * 20,))], tiny_tokenizer(), max_tokens=10)


def test_records_do_not_couple_in_the_loss():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    records = [record("abc", (" a",)), record("a longer prompt", (" a longer response",))]
    items = encode_records(records, tokenizer, max_tokens=64).items

    def loss(chosen):
        batch = training_batch(chosen, pad_id=0, device="cpu")
        return batch_loss(model, batch)

    torch.testing.assert_close(loss(items), (loss(items[:1]) + loss(items[1:])) / 2)


def test_loss_is_the_mean_over_response_tokens_of_the_models_own_loss():
    model = tiny_llama()
    (item,) = encode_records([record("abc", (" xyz",))], tiny_tokenizer(), max_tokens=64).items
    ids = torch.tensor([item.ids])
    labels = ids.clone()
    labels[:, : item.response_start] = -100
    batch = training_batch([item], pad_id=0, device="cpu")
    torch.testing.assert_close(batch_loss(model, batch), model(ids, labels=labels).loss)


def test_loglikelihoods_equal_a_plain_loop_with_one_token_choices_and_longer_ones():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    records = [
        record("question one", ("a", "b", "c")),
        record("two", (" yes", " not at all", " not at", " nothing")),
        record("a third, longer one", ("x", "y")),
    ]
    found = choice_loglikelihoods(model, tokenizer, records, max_tokens=64)
    for r, scores in zip(records, found, strict=True):
        for choice, score in zip(r.choices, scores, strict=True):
            prompt = [1, *tokenizer(r.prompt, add_special_tokens=False)["input_ids"]]
            tokens = tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                log_p = model(torch.tensor([prompt + tokens])).logits[0].double().log_softmax(-1)
            want = sum(float(log_p[len(prompt) + i - 1, t]) for i, t in enumerate(tokens))
            assert score == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_model_whose_scores_are_no_numbers_answers_nothing_right(broken):
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(broken)
    found = choice_correct(model, tiny_tokenizer(), [record(label=0), record(label=1)], max_tokens=16)
    assert not found.acc.any()
    assert not found.acc_norm.any()


def test_a_choice_without_characters_is_never_the_likeliest_by_character():
    scores = np.array([0.0, -3.0])
    assert _per_character(scores, record(choices=(" ", " c"))).tolist() == [-np.inf, -3.0]


def test_evaluation_leaves_the_training_mode_as_it_was():
    model = tiny_llama().train()
    found = choice_correct(model, tiny_tokenizer(), [record()], max_tokens=16)
    assert found.acc.dtype == found.acc_norm.dtype == np.bool_
    assert model.training


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    windows = text_windows("some text " * 20, tiny_tokenizer(), window_tokens=16, limit=4)
    assert windows.shape == (4, 16)
    assert perplexity(model, windows) == pytest.approx(259, rel=1e-4)


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match="at least one window"):
        text_windows("short", tiny_tokenizer(), window_tokens=16, limit=1)


@pytest.mark.parametrize(
    ("source", "splits"),
    [("a.jsonl", {}), ("a.{split}.jsonl", {"test_split": "train"}), ("demo", {"train_split": "test"})],
)
def test_a_client_whose_test_records_would_be_those_it_trains_on_is_refused(source, splits):
    client = ClientConfig(name="a", task="sst2", source=source, **splits)
    with pytest.raises(DataError, match=r"client a: .* training and test records would be the same"):
        load_task(client, root=None)


@pytest.mark.parametrize(
    ("splits", "shared"),
    [
        ({"test_split": "train[-4:]"}, 4),
        ({"test_split": "train[:4]", "train_split": "train[2:]"}, 2),
        ({"test_split": "train", "train_split": "train[:-4]"}, 8),
        ({"test_split": "train[-4:]", "train_records": 9}, 1),
        ({"test_split": "train[6:]", "train_split": "train[:-2]", "test_records": 3}, 3),
    ],
)
def test_parts_of_one_split_that_share_rows_are_refused_with_their_number(tmp_path, splits, shared):
    root = write_records(tmp_path, clients=1, records=12)
    client = ClientConfig(name="a", task="classification", source="{data}/0.{split}.jsonl", **splits)
    line = (
        rf"client a: train_split='.*', test_split='.*': have {shared} of 12 rows in common; must have none"
    )
    with pytest.raises(DataError, match=line):
        load_task(client, root=root)


@pytest.mark.parametrize(
    "splits",
    [
        {"train_split": "train[:-4]", "test_split": "train[-4:]"},
        {"train_split": "train[4:]", "test_split": "train[:4]"},
        {"test_split": "train[-4:]", "train_records": 8},
    ],
)
def test_parts_of_one_split_that_share_no_row_are_read(tmp_path, splits):
    root = write_records(tmp_path, clients=1, records=12)
    client = ClientConfig(name="a", task="classification", source="{data}/0.{split}.jsonl", **splits)
    task = load_task(client, root=root)
    assert (len(task.train), len(task.test)) == (8, 4)
    assert not {r.prompt for r in task.train} & {r.prompt for r in task.test}


@pytest.mark.parametrize(
    ("source", "splits"),
    [
        ("real_things", {"test_split": "train[-200:]"}),
        ("real_things", {"test_split": "train[-200:]", "train_split": "train[0:500]"}),
        ("real_things", {"test_split": "train[1900:2100]", "train_records": 2000}),
        ("hub:x", {"test_split": "train[50%:]"}),
    ],
)
def test_parts_of_a_worlds_split_and_of_a_hubs_are_looked_at_too(source, splits):
    client = ClientConfig(name="a", task="museum", source=source, **splits)
    with pytest.raises(DataError, match=r"client a: train_split=.*; use such as train"):
        load_task(client, root=None)


def test_a_part_that_a_world_counts_from_the_end_is_not_silently_smaller_than_asked_for():
    client = ClientConfig(
        name="a", task="museum", source="real_things", train_split="train[:-100]", train_records=2000
    )
    with pytest.raises(DataError, match=r"has 300 records, 2000 are asked for; .* as in train\[:2000\]"):
        load_task(client, root=None)
    assert len(load_task(client.changed(train_split="train[:2000]"), root=None).train) == 2000
    assert len(load_task(client.changed(train_records=300), root=None).train) == 300
