"""Prompt files of public benchmarks, and the folders their official scorers read: real pipelines, file by file."""

import json
import os
import sys

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from amd_plugin.disk import NotWritten
from amd_plugin.errors import InputError, MissingDependency
from amd_plugin.evaluate.students import evaluation
from amd_plugin.evaluate.students import suite as suites
from amd_plugin.evaluate.students.evaluation import evaluate
from amd_plugin.evaluate.students.media import write
from amd_plugin.host import run
from amd_plugin.models.embedded.tiny import clip_tokenizer
from tests.helpers.limits import no_file_above
from tests.helpers.pipelines import WORDS

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "boat", "count": 1}], "prompt": "a blue boat"},
    {"tag": "colors", "include": [{"class": "fox", "count": 1, "color": "red"}], "prompt": "a red fox"},
]
VBENCH = [
    {"prompt_en": "a red fox", "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": "a tall house", "dimension": ["color"], "auxiliary_info": {"color": "tall"}},
    {"prompt_en": "a red fox", "dimension": ["temporal_flickering"]},
]


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "prompts"
    (folder / "hpd").mkdir(parents=True)
    (folder / "evaluation_metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in GENEVAL))
    (folder / "VBench_full_info.json").write_text(json.dumps(VBENCH))
    for style, prompts in {
        "anime": ["a red fox", "a blue fox"],
        "photo": ["a tall house", "a red house", "a blue boat"],
    }.items():
        (folder / "hpd" / f"{style}.json").write_text(json.dumps(prompts))
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A tiny CLIP with its processors on disk."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = clip_tokenizer(WORDS)
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def listed(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def metrics(folder):
    return json.loads((folder / "evaluation.json").read_text())["metrics"]


def test_pictures_for_geneval_and_hpsv2(piped, plugins, tmp_path, files, clip):
    recipe = piped("sdxl", f"evaluate.features={{path: {clip}}}", "evaluate.batch_size=3")
    run.train(recipe, plugins, tmp_path / "run")
    evaluate(tmp_path / "run", plugins, samples=8)
    found = metrics(tmp_path / "run" / "evaluation")
    assert {"frechet", "coverage", "diversity", "alignment", "saturation", "pixel_diversity", "reward/brightness"} <= set(found)
    assert found["alignment"]["difference"]["value"] is not None and "motion" not in found

    evaluate(tmp_path / "run", plugins, tmp_path / "g", prompts=files / "evaluation_metadata.jsonl", teacher=False)
    samples = [f"{n:05d}/samples/{k:04d}.png" for n in range(2) for k in range(4)]
    assert listed(tmp_path / "g" / "geneval") == sorted([*samples, "00000/metadata.jsonl", "00001/metadata.jsonl"])
    assert [json.loads((tmp_path / f"g/geneval/{n:05d}/metadata.jsonl").read_text()) for n in range(2)] == GENEVAL
    assert all(Image.open(tmp_path / "g" / "geneval" / name).size == (16, 16) for name in samples)

    evaluate(tmp_path / "run", plugins, tmp_path / "h", prompts=files / "hpd", teacher=False)
    expected = ["anime/00000.jpg", "anime/00001.jpg", "photo/00000.jpg", "photo/00001.jpg", "photo/00002.jpg"]
    assert listed(tmp_path / "h" / "hpdv2") == expected
    assert Image.open(tmp_path / "h" / "hpdv2" / expected[0]).format == "JPEG"

    with pytest.raises(InputError, match="vbench is a benchmark of videos"):
        evaluate(tmp_path / "run", plugins, tmp_path / "v", prompts=files / "VBench_full_info.json")
    assert not (tmp_path / "v").exists()


def test_plain_prompts_are_compared_with_the_teacher(piped, plugins, tmp_path, files, clip):
    run.train(piped("sdxl", f"evaluate.features={{path: {clip}}}"), plugins, tmp_path / "run")
    (files / "plain.txt").write_text("a red fox\na blue boat\n")
    evaluate(tmp_path / "run", plugins, prompts=files / "plain.txt")
    content = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert content["suite"] == "plain" and content["reference"] == "4 samples of the teacher" and content["prompts"] == 2
    assert listed(tmp_path / "run" / "evaluation" / "samples") == [
        "00000-00.png",
        "00000-01.png",
        "00001-00.png",
        "00001-01.png",
    ]
    (files / "one.json").write_text(json.dumps(["a red fox"]))
    with pytest.raises(InputError, match=r"one.json: nearest neighbours and covariances need at least 4 samples, got 1"):
        evaluate(tmp_path / "run", plugins, prompts=files / "one.json")


def test_videos_for_vbench(piped, plugins, tmp_path, files, clip, monkeypatch):
    import imageio_ffmpeg

    run.train(piped("wan", f"evaluate.features={{path: {clip}}}", "evaluate.fps=8"), plugins, tmp_path / "run")
    info = files / "VBench_full_info.json"
    evaluate(tmp_path / "run", plugins, prompts=info)
    folder = tmp_path / "run" / "evaluation"
    assert listed(folder / "vbench") == sorted(f"{p}-{k}.mp4" for p in ("a red fox", "a tall house") for k in range(5))
    video = folder / "vbench" / "a red fox-3.mp4"
    about = next(imageio_ffmpeg.read_frames(str(video)))
    assert imageio_ffmpeg.count_frames_and_secs(str(video))[0] == 5
    assert about["size"] == (16, 16) and about["fps"] == 8 and about["codec"].startswith("h264")
    found = metrics(folder)
    assert {"motion", "moving", "consistency", "alignment", "frechet"} <= set(found)
    assert -1 <= found["consistency"]["value"] <= 1 and found["motion"]["value"] >= 0

    with pytest.raises(InputError, match="geneval is a benchmark of pictures"):
        evaluate(tmp_path / "run", plugins, prompts=files / "evaluation_metadata.jsonl")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingDependency, match="pip install 'imageio-ffmpeg"):
        evaluate(tmp_path / "run", plugins, prompts=info)


@pytest.mark.parametrize("prompt", ["A **red** car", "[a] fox?"])
def test_a_prompt_in_a_name_is_no_pattern(prompt, tmp_path):
    for place in ("samples", "teacher"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{prompt}-0.mp4").touch()
    group = suites.Group(0, prompt, 1, files=[f"{prompt}-0.mp4"])
    evaluation._write_pairs(tmp_path, suites.Suite("vbench", [group]))
    (pair,) = json.loads((tmp_path / "pairs.json").read_text())
    assert pair == {"prompt": prompt, "student": f"samples/{prompt}-0.mp4", "teacher": f"teacher/{prompt}-0.mp4"}


def test_a_video_survives_its_file(tmp_path):
    import imageio_ffmpeg
    import numpy as np

    ramp = torch.linspace(0, 1, 6)[None, :, None, None].expand(3, -1, 32, 48)
    frames = imageio_ffmpeg.read_frames(str(write(tmp_path / "ramp.mp4", ramp, 8)))
    assert next(frames)["size"] == (48, 32)
    grey = [np.frombuffer(frame, np.uint8).mean() / 255 for frame in frames]
    assert grey == pytest.approx(torch.linspace(0, 1, 6).tolist(), abs=0.03)
    gif = Image.open(write(tmp_path / "ramp", ramp, 8))
    assert gif.format == "GIF" and gif.n_frames == 6
    picture = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    read = torch.tensor(np.asarray(Image.open(write(tmp_path / "grey", picture, 8))).copy()) / 255
    torch.testing.assert_close(read, picture[0][..., None].expand(-1, -1, 3), atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_video_that_the_disk_does_not_take_is_not_there(tmp_path):
    noise = torch.rand(3, 12, 64, 64, generator=torch.Generator().manual_seed(0))
    for size in (200, 20_000):  # its header alone, and a part of it
        with no_file_above(size), pytest.raises(NotWritten, match=r"File too large: '.*noise.mp4'"):
            write(tmp_path / "noise.mp4", noise, 8)
    assert list(tmp_path.iterdir()) == []


def test_what_files_ask_for(files):
    geneval = suites.read(files / "evaluation_metadata.jsonl")
    assert geneval.form == "geneval" and geneval.size == 8 and geneval.groups[1].columns["tag"] == "colors"
    vbench = suites.read(files / "VBench_full_info.json")
    assert [g.prompt for g in vbench.groups] == ["a red fox", "a tall house"] and vbench.size == 10
    hpd = suites.read(files / "hpd")
    assert hpd.size == 5 and [g.columns["style"] for g in hpd.groups] == ["anime"] * 2 + ["photo"] * 3
    assert suites.read(files / "hpd" / "photo.json").groups[0].files == ["photo/00000.jpg"]
    assert suites.read(files / "evaluation_metadata.jsonl", samples=7).size == 4
    (files / "plain.txt").write_text("a red fox\n\na blue boat\n")
    plain = suites.read(files / "plain.txt", per_prompt=3)
    assert [g.prompt for g in plain.groups] == ["a red fox", "a blue boat"] and plain.size == 6
    assert suites.read(files / "evaluation_metadata.jsonl", "plain").form == "plain"


@pytest.mark.parametrize(
    ("name", "content", "form", "said"),
    [
        ("a.json", '{"prompts": []}', "auto", "is of no known form"),
        ("a.json", "[]", "auto", "is of no known form"),
        ("a.json", "[1, 2]", "auto", "is of no known form"),
        ("a.json", "[", "auto", "cannot be read"),
        ("a.xml", "<a/>", "auto", "must be a folder or one of"),
        ("a.jsonl", "{}\n{", "auto", "cannot be read"),
        ("a.jsonl", '{"prompt": "a fox"}', "geneval", "entry 1 must have tag and include"),
        ("a.jsonl", '{"prompt": " ", "tag": "x", "include": []}', "geneval", "a prompt that is not blank"),
        ("a.json", '["a fox", 3]', "auto", "entry 2 must be text"),
        ("a.json", '[{"prompt_en": "a fox"}]', "auto", "must have dimension"),
        ("a.json", '[{"prompt_en": "a/b", "dimension": ["color"]}]', "auto", "is no file name"),
        ("a.txt", "a fox", "vbench", "must be a list of entries"),
        ("a.txt", "\n\n", "auto", "only blank lines"),
        ("a.json", "[" * 200_000, "auto", "maximum recursion depth"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_file_is_said(tmp_path, name, content, form, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"^--prompts ") as caught:
        suites.read(tmp_path / name, form)
    assert said in str(caught.value)


@pytest.mark.parametrize("end", ["\u2028", "\x85"])
def test_a_line_of_json_ends_at_a_line_feed_alone(tmp_path, end):
    entry = json.dumps({"prompt": f"a fox{end}", "tag": "x", "include": []}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{entry}\r\n{entry}\n\n", newline="")
    assert len(suites.read(tmp_path / "a.jsonl").groups) == 2


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_prompt_file_that_never_ends_is_refused(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"endless{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(InputError, match="it is no file but a pipe or a device"):
            suites.read(tmp_path / f"{name}{suffix}")


@pytest.mark.parametrize("what", ["nowhere/at-all", "pipeline"])
def test_features_that_are_none_are_said(piped, plugins, tmp_path, pipeline_folder, what):
    path = pipeline_folder("sdxl") / "unet" if what == "pipeline" else tmp_path / "nowhere"
    run.train(piped("sdxl", f"evaluate.features={{path: {path}}}"), plugins, tmp_path / "run")
    with pytest.raises(InputError, match=r"evaluate.features: .* cannot be read as a model"):
        evaluate(tmp_path / "run", plugins, samples=8)
    assert not (tmp_path / "run" / "evaluation").exists()
