"""Prompts from wherever people keep them: every format, every way a file can be bad, and an order without state."""

import csv
import json
import subprocess
import sys
import textwrap

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amd_plugin.data.prompt_rows import PromptRows
from amd_plugin.errors import InputError
from tests.helpers.prompt_files import PROMPTS, RECORDS, image_folder


def _table(path, delimiter):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "style"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)


def _parquet(path):
    pq.write_table(pa.Table.from_pylist(RECORDS), path)


def _parquet_folder(path):
    path.mkdir()
    pq.write_table(pa.Table.from_pylist(RECORDS[:3]), path / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(RECORDS[3:]), path / "train-00001-of-00002.parquet")


def _copied_from_hub(path):
    (path / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(RECORDS), path / "data" / "train-00000-of-00001.parquet")
    (path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n# Foxes\n"
    )


WRITE = {
    "p.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, RECORDS))),
    "p.json": lambda path: path.write_text(json.dumps(RECORDS)),
    "p.parquet": _parquet,
    "p.csv": lambda path: _table(path, ","),
    "p.tsv": lambda path: _table(path, "\t"),
    "P.CSV": lambda path: _table(path, ","),
    "parquets": _parquet_folder,
    "hub": _copied_from_hub,
    "images": image_folder,
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WRITE)
def test_every_format_gives_the_same_rows(name, streaming, tmp_path):
    WRITE[name](tmp_path / name)
    rows = PromptRows(str(tmp_path / name), shuffle=False, streaming=streaming).rows(0, 7)
    assert [row.prompt for row in rows] == PROMPTS
    assert [row.columns["style"] for row in rows] == [record["style"] for record in RECORDS]
    assert all(row.image is None for row in rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_text_file_has_a_prompt_a_line_and_blank_ones_do_not_count(streaming, tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa fox\r\n\r\n  \n\xc3\xa9t\xc3\xa9, NA\n  a boat  \nNone")
    rows = PromptRows(str(tmp_path / "p.txt"), shuffle=False, streaming=streaming)
    assert [row.prompt for row in rows.rows(0, 4)] == ["a fox", "\u00e9t\u00e9, NA", "a boat", "None"]
    assert rows.num_rows == (None if streaming else 4)


def test_words_that_look_like_missing_values_are_prompts(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,n\nNA,1\nnull,2\nNone,3\n")
    assert [row.prompt for row in PromptRows(str(tmp_path / "p.csv"), shuffle=False).rows(0, 3)] == ["NA", "null", "None"]


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_found_or_named(streaming, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"caption": "a fox", "text": "a boat", "words": "a house", "n": 3}))
    found = lambda **how: PromptRows(str(path), streaming=streaming, **how).rows(0, 1)[0]  # noqa: E731
    assert found().prompt == "a boat"
    assert found(column="words").prompt == "a house"
    assert found(column="words").columns == {"caption": "a fox", "text": "a boat", "n": 3}


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_are_decoded_only_when_asked_for(streaming, tmp_path):
    image_folder(tmp_path / "images")
    rows = PromptRows(str(tmp_path / "images"), image_column="image", shuffle=False, streaming=streaming)
    seen = rows.rows(2, 2)
    assert [row.image.getpixel((0, 0)) for row in seen] == [(60, 0, 195), (90, 0, 165)]
    assert [(row.prompt, row.image) for row in rows.rows(2, 2, images=False)] == [(p, None) for p in PROMPTS[2:4]]


BAD = {
    "p.txt": [
        (b"", "is empty"), (b"\n  \n\r\n", "blank lines"), (b"a fox\nb\0d\n", "line 2 has a NUL"), (b"\xff\xfe\xfa\n", "UTF-8"),
    ],
    "p.jsonl": [
        (b'{"promt": "a"}', "Did you mean 'promt'"), (b'{"prompt": 3}', "must be text"), (b'{"prompt": "a"}\n{"prompt"', "read"),
        (b'{"prompt": "a"}\n{"prompt": " "}', "row 2 has no prompt"), (b'{"prompt": "a\\u0000"}', "row 1 has a NUL"),
        (b'{"prompt": "a"}\n{"prompt": null}', "row 2 has no prompt"),
    ],
    "p.json": [(b"[]", "no rows"), (b"{", "cannot be read")],
    "p.csv": [
        (b"prompt,n\n", "no rows"), (b"prompt,n\na,1\nb,2,3\n", "cannot be read"), (b"prompt\n3\n4\n", "must be text"),
        (b"caption s\na\n", "must have a column"), (b"prompt,n\n,1\n", "must be text|no prompt"),
        (b"prompt\n\xe9t\xe9\n", "UTF-8"),
    ],
    "p.parquet": [(b"PAR1 is not enough", "cannot be read")],
    "p.docx": [(b"a fox", "must be a folder or one of")],
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "content", "said"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_a_file_that_cannot_be_used_says_why_in_a_line(name, content, said, streaming, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        PromptRows(str(tmp_path / name), streaming=streaming).rows(0, 8)
    assert str(caught.value).startswith(f"data.source: {tmp_path / name}: ") and "\n" not in str(caught.value)


def test_a_name_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox")
    with pytest.raises(InputError, match=r"no such file or folder\. Did you mean 'prompts.txt'"):
        PromptRows(str(tmp_path / "promts.txt"))


def test_pictures_that_are_missing_or_none(tmp_path):
    image_folder(tmp_path / "images")
    with pytest.raises(InputError, match="must be images"):
        PromptRows(str(tmp_path / "images"), image_column="style")
    with pytest.raises(InputError, match="must have a column 'picture'"):
        PromptRows(str(tmp_path / "images"), image_column="picture")
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="image of 'a fox, number 3' cannot be read"):
        PromptRows(str(tmp_path / "images"), image_column="image").rows(0, 7)


@pytest.fixture
def hundred(tmp_path):
    path = tmp_path / "hundred.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"p{index}"}) for index in range(100)))
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_each_epoch_is_a_permutation_of_its_own(streaming, hundred):
    order = [row.prompt for row in PromptRows(hundred, streaming=streaming).rows(0, 300)]
    epochs = [order[:100], order[100:200], order[200:]]
    assert all(sorted(epoch) == sorted(f"p{index}" for index in range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert order != [row.prompt for row in PromptRows(hundred, streaming=streaming, seed=1).rows(0, 300)]
    plain = [row.prompt for row in PromptRows(hundred, streaming=streaming, shuffle=False).rows(0, 200)]
    assert plain == [f"p{index}" for index in range(100)] * 2


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_do_not_depend_on_what_was_read_before(streaming, hundred):
    whole = [row.prompt for row in PromptRows(hundred, streaming=streaming).rows(0, 320)]
    warm = PromptRows(hundred, streaming=streaming)
    for start, count in ((0, 7), (7, 3), (250, 70), (99, 2), (100, 1), (3, 0), (10, 205)):
        for rows in (warm, warm.again(), PromptRows(hundred, streaming=streaming)):
            assert [row.prompt for row in rows.rows(start, count)] == whole[start : start + count], (start, count)


def test_two_places_in_one_stream_do_not_disturb_each_other(hundred):
    one = PromptRows(hundred, streaming=True)
    whole = [row.prompt for row in PromptRows(hundred, streaming=True).rows(0, 60)]
    one.rows(0, 5)
    other = one.again()
    read = [[row.prompt for row in rows.rows(at, 5)] for at in range(5, 60, 5) for rows in (one, other)]
    assert read == [whole[at : at + 5] for at in range(5, 60, 5) for _ in range(2)]


def _elsewhere(code, cwd, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_fresh_process_goes_on_where_another_stopped(streaming, hundred, tmp_path):
    there = _elsewhere(
        f"""
        import json
        from amd_plugin.data.prompt_rows import PromptRows
        print(json.dumps([row.prompt for row in PromptRows({hundred!r}, streaming={streaming}).rows(150, 100)]))
        """,
        tmp_path,
    )
    assert there == [row.prompt for row in PromptRows(hundred, streaming=streaming).rows(0, 250)][150:]


def test_the_hub_offline_fails_at_once(tmp_path):
    said = _elsewhere(
        """
        import json
        from amd_plugin.errors import InputError
        from amd_plugin.data.prompt_rows import PromptRows
        said = []
        for streaming in (False, True):
            try:
                PromptRows("nobody/has-this", streaming=streaming)
            except InputError as error:
                said.append(str(error))
        print(json.dumps(said))
        """,
        tmp_path,
        HF_HUB_OFFLINE="1",
    )
    assert len(said) == 2
    assert all("could it be read from the hub" in text and "Check the name, or the network" in text for text in said)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_million_lines_are_read_with_flat_memory(streaming, tmp_path):
    """Opened, followed, and asked for as a whole run does, with embeddings that are all on disk already."""
    with open(tmp_path / "million.txt", "w") as file:
        file.writelines(f"a prompt of ordinary length about fox number {index} in the snow\n" for index in range(1_000_000))
    grown = _elsewhere(
        f"""
        import json, pathlib, resource, types
        import torch
        from amd_plugin.models.conditions import PromptConditions
        from amd_plugin.data.prompts import Prompts
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        no_encoders = lambda: types.SimpleNamespace(components={{}})
        conditions = PromptConditions(no_encoders, lambda p, prompts, n: {{"x": torch.zeros(len(prompts), 1)}}, "", {{}})
        task = Prompts(source="million.txt", streaming={streaming})
        asked = iter(task.asked_for(1_000_000, 16))
        class Everywhere:
            def __fspath__(self): return "million.txt"
            def with_suffix(self, suffix): return pathlib.Path("nowhere")
        path = conditions.files.path
        conditions.files.path = lambda prompt, negative=False: path(prompt, True) if negative else Everywhere()
        read = 0
        def counted():
            global read
            for prompt in asked:
                read += 1
                if read == 50_000:
                    globals()["start"] = peak()
                yield prompt
        conditions.prepare(counted(), torch.device("cpu"))
        print(json.dumps([read, peak() - start]))
        """,
        tmp_path,
        AMD_PLUGIN_CACHE=str(tmp_path / "cache"),
    )
    assert grown[0] == 1_000_000 + 16
    assert grown[1] < 60, f"{grown[1]:.0f} MB more at the end than after the first 50 000 prompts"


def test_a_folder_by_save_to_disk_says_what_to_write_instead(tmp_path):
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="Write it with to_parquet"):
        PromptRows(str(tmp_path / "saved"))


@pytest.mark.parametrize("name", ["p.csv", "images"])
def test_a_cache_that_cannot_be_written_names_the_variable(name, tmp_path, monkeypatch):
    WRITE[name](tmp_path / name)
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="Set AMD_PLUGIN_CACHE"):
        PromptRows(str(tmp_path / name))


def test_a_column_is_found_in_any_case(tmp_path):
    """As in PartiPrompts; a column in small letters comes first."""
    (tmp_path / "parti.tsv").write_text("Prompt\tCategory\nbond\tAbstract\n")
    assert PromptRows(str(tmp_path / "parti.tsv")).rows(0, 1)[0].prompt == "bond"
    (tmp_path / "both.csv").write_text("Prompt,prompt\nno,yes\n")
    assert PromptRows(str(tmp_path / "both.csv")).rows(0, 1)[0].prompt == "yes"


def test_grey_pictures_of_sixteen_bits_are_not_white(tmp_path):
    import numpy as np
    from PIL import Image

    from amd_plugin.data.prompts import Prompts

    (tmp_path / "grey").mkdir()
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "grey" / "a.png")
    (tmp_path / "grey" / "metadata.csv").write_text("file_name,prompt\na.png,fog\n")
    pictures, _ = Prompts(source=str(tmp_path / "grey"), image_column="image").training_data(1, None)
    assert pictures.mean().item() == pytest.approx(0, abs=0.01)


def test_columns_with_the_names_of_a_rewards_own_arguments_are_not_given(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a fox", "media": "ink", "prompts": "x", "self": 1, "style": "ink"}\n')
    import torch

    from amd_plugin.data.prompts import Prompts

    task = Prompts(source=str(tmp_path / "rows.jsonl"))
    assert task.columns(torch.tensor([0])) == {"style": ["ink"]}
