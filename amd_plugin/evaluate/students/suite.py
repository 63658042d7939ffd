"""The prompts of an evaluation and the files of its samples: the run's own prompts, or those of a public benchmark.

Samples of a benchmark are written in the folder layout that its official scorer reads, and nothing else is in that folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from amd_plugin.choices import PromptFormat
from amd_plugin.data.prompt_rows import PromptRows
from amd_plugin.disk import regular
from amd_plugin.errors import InputError
from amd_plugin.tasks import Task

# Samples per prompt that the official scorers ask for.
REPEATS = {"geneval": 4, "hpdv2": 1, "vbench": 5}
STYLES = ("anime", "concept-art", "paintings", "photo")
# Samples per group of the run's own prompts that are also written as pictures.
SHOWN = 8


@dataclass
class Group:
    """Samples of one prompt or class.

    Attributes:
        index: place among all groups; with a sample's number it is the key of the sample's noise.
        prompt: prompt in words.
        repeats: number of samples.
        label: label of the task, for a group of the run's own prompts or classes; None for a prompt file.
        columns: further values that rewards may take by name, the same for all samples.
        files: file names of the first samples; without a suffix where the kind of media decides it.
    """

    index: int
    prompt: str
    repeats: int
    label: int | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


@dataclass
class Suite:
    """All groups of an evaluation.

    Attributes:
        form: ``task`` for the run's own prompts, or the format of the prompt file.
        groups: groups in the order of their indices.
        texts: file name -> content, for the text files that a benchmark's layout needs beside the samples.
    """

    form: str
    groups: list[Group]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of samples over all groups."""
        return sum(group.repeats for group in self.groups)

    def has_all_classes(self, task: Task) -> bool:
        """Whether the groups are all classes of `task`, and not a sample of its prompts."""
        return self.form == "task" and 0 < task.num_classes <= len(self.groups)


def of_task(task: Task, samples: int) -> Suite:
    """The suite of prompts or classes that the run itself is evaluated on."""
    return of_labels(task, task.balanced_labels(samples))


def of_labels(task: Task, asked: torch.Tensor) -> Suite:
    """The suite of the labels `asked` [B], a group for each run of equal ones."""
    labels, counts = torch.unique_consecutive(asked, return_counts=True)
    groups = []
    for index, (label, count) in enumerate(zip(labels, counts.tolist(), strict=True)):
        columns = {k: v for k, v in task.columns(label[None]).items() if k != "labels"}
        shared = {name: values[0] for name, values in columns.items()}
        files = _plain_files(index, count)
        groups.append(Group(index, task.prompts(label[None])[0], count, int(label), shared, files))
    return Suite("task", groups)


def read(path: Path, form: PromptFormat = "auto", *, samples: int | None = None, per_prompt: int = 4) -> Suite:
    """The suite in a prompt file; HPDv2's may also be the folder with one file per style.

    Args:
        path: prompt file.
        form: format of the prompt file; ``auto`` detects it.
        samples: largest number of samples, in whole prompts from the beginning; all by default.
        per_prompt: number of samples per prompt of a plain file; benchmarks have their own numbers.

    Raises:
        InputError: if the file cannot be read, or has an unknown format.
    """
    if not path.exists():
        raise InputError(f"--prompts {path}: there is no such file or folder")
    content = None if path.is_dir() or path.suffix not in (".json", ".jsonl") else _parsed(path)
    form = _detect_form(path, content) if form == "auto" else form
    suite = _READERS[form](path, content) if form != "plain" else _plain(path, per_prompt)
    if samples is not None:
        prompts = samples // suite.groups[0].repeats
        if not prompts:
            raise InputError(
                f"--samples {samples}: {path} asks for {suite.groups[0].repeats} per prompt; ask for that many at least"
            )
        suite.groups = suite.groups[:prompts]
    return suite


def _detect_form(path: Path, content: Any) -> PromptFormat:
    if path.is_dir():
        if any((path / f"{style}.json").is_file() for style in STYLES):
            return "hpdv2"
        raise InputError(f"--prompts {path}: is a folder, and holds none of HPDv2's {', '.join(f'{s}.json' for s in STYLES)}")
    if content is None:
        return "plain"
    first = content[0] if isinstance(content, list) and content else None
    if path.suffix == ".jsonl":
        return "geneval" if isinstance(first, dict) and {"tag", "include"} <= set(first) else "plain"
    if isinstance(first, str):
        return "hpdv2"
    if isinstance(first, dict) and "prompt_en" in first:
        return "vbench"
    raise InputError(
        f"--prompts {path}: is of no known form. Known are .txt, .csv, .jsonl and .parquet with a prompt per row, GenEval's "
        "evaluation_metadata.jsonl, HPDv2's lists of prompts and VBench_full_info.json; --format names one"
    )


def _plain(path: Path, per_prompt: int) -> Suite:
    try:
        rows = PromptRows(str(path), shuffle=False)
        prompts = rows.rows(0, len(rows))
    except InputError as error:
        raise InputError(f"--prompts {str(error).removeprefix('data.source: ')}") from error
    groups = [
        Group(index, row.prompt, per_prompt, None, row.columns, _plain_files(index, per_prompt))
        for index, row in enumerate(prompts)
    ]
    return Suite("plain", groups)


def _geneval(path: Path, content: Any) -> Suite:
    groups, texts = [], {}
    for index, entry in enumerate(_entries(path, content, dict)):
        _require(path, index, isinstance(entry.get("tag"), str) and isinstance(entry.get("include"), list), "tag and include")
        prompt = _prompt(path, index, entry.get("prompt"))
        folder = f"{index:05d}"
        texts[f"{folder}/metadata.jsonl"] = json.dumps(entry)
        columns = {name: value for name, value in entry.items() if name != "prompt"}
        files = [f"{folder}/samples/{repeat:04d}.png" for repeat in range(REPEATS["geneval"])]
        groups.append(Group(index, prompt, REPEATS["geneval"], None, columns, files))
    return Suite("geneval", groups, texts)


def _hpdv2(path: Path, content: Any) -> Suite:
    files = [path / f"{style}.json" for style in STYLES if (path / f"{style}.json").is_file()] if path.is_dir() else [path]
    groups: list[Group] = []
    for file in files:
        entries = _entries(file, _parsed(file), str)
        for index, entry in enumerate(entries):
            prompt, target = _prompt(file, index, entry), [f"{file.stem}/{index:05d}.jpg"]
            groups.append(Group(len(groups), prompt, REPEATS["hpdv2"], None, {"style": file.stem}, target))
    return Suite("hpdv2", groups)


def _vbench(path: Path, content: Any) -> Suite:
    groups: dict[str, Group] = {}
    for index, entry in enumerate(_entries(path, content, dict)):
        _require(path, index, isinstance(entry.get("dimension"), list), "dimension")
        prompt = _prompt(path, index, entry.get("prompt_en"))
        if "/" in prompt or not prompt.isprintable() or len(f"{prompt}-0.mp4".encode()) > 255:
            message = "VBench finds videos by their prompt, and this one is no file name (a slash, a line end, too long)"
            raise InputError(f"--prompts {path}: entry {index + 1}: {message}: {prompt[:60]!r}. Leave the entry out")
        if prompt not in groups:  # a prompt with one entry per dimension is sampled once
            files = [f"{prompt}-{repeat}.mp4" for repeat in range(REPEATS["vbench"])]
            groups[prompt] = Group(len(groups), prompt, REPEATS["vbench"], None, {"dimension": entry["dimension"]}, files)
    return Suite("vbench", list(groups.values()))


NO_TEXT = re.compile("[\\0\ud800-\udfff]")  # half characters, which cannot be written to a file
_READERS: dict[str, Callable[[Path, Any], Suite]] = {"geneval": _geneval, "hpdv2": _hpdv2, "vbench": _vbench}


def _plain_files(index: int, count: int) -> list[str]:
    return [f"{index:05d}-{repeat:02d}" for repeat in range(min(count, SHOWN))]


def _parsed(path: Path) -> Any:
    """The list of lines in a .jsonl file, or the content of a .json file."""
    try:
        text = regular(path).read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":  # a text in it may hold the line ends of Unicode that splitlines knows
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--prompts {path}: cannot be read: {error}. It must be JSON in UTF-8") from error


def _entries(path: Path, content: Any, kind: type) -> list[Any]:
    if not isinstance(content, list) or not content:
        raise InputError(f"--prompts {path}: must be a list of entries, and is empty or none. See --format")
    for index, entry in enumerate(content):
        if not isinstance(entry, kind):
            expected = "an object" if kind is dict else "text"
            raise InputError(f"--prompts {path}: entry {index + 1} must be {expected}, got {str(entry)[:60]!r}. See --format")
    return content


def _prompt(path: Path, index: int, value: Any) -> str:
    _require(
        path, index, isinstance(value, str) and bool(value.strip()) and not NO_TEXT.search(value), "a prompt that is not blank"
    )
    return str(value)


def _require(path: Path, index: int, valid: bool, required: str) -> None:
    if not valid:
        raise InputError(f"--prompts {path}: entry {index + 1} must have {required}. Correct it, or name another --format")
