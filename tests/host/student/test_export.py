"""A student can be written again from any checkpoint, in either weights and either format, and nothing is lost on the way."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

import amd_plugin
from amd_plugin.errors import InputError, RunError
from amd_plugin.host import run
from amd_plugin.host.running.student_files import check_replaceable, list_files
from amd_plugin.host.student import export
from amd_plugin.host.student.export import LORA_FILE, export_run, push
from amd_plugin.host.student.model_card import _base, _metadata, write_card
from amd_plugin.models.backbone import load_backbone
from tests.helpers.documentation import blocks


def network(folder, component="unet"):
    return load_file(next((folder / component).glob("*.safetensors")))


@pytest.fixture
def finished(piped, plugins, tmp_path):
    """A finished run of a shared-base SDXL, with the checkpoints of both of its steps."""
    run.train(piped("sdxl", "train.checkpoint_every=1", "rewards=[{name: random}]"), plugins, tmp_path / "run")
    return tmp_path / "run"


def test_any_checkpoint_and_either_weights(finished, plugins, tmp_path):
    before = network(finished / "student")
    made = {
        (at, weights): export_run(finished, plugins, tmp_path / f"{at}-{weights}", at=at, weights=weights)
        for at in ("1", "2") for weights in ("ema", "raw")
    }  # fmt: skip
    last = network(made["2", "ema"])
    assert all(torch.equal(last[name], value) for name, value in before.items()), "the run's own student again, to the bit"
    different = [network(made[key]) for key in (("1", "ema"), ("1", "raw"), ("2", "raw"))]
    assert any(not torch.equal(different[0][n], last[n]) for n in last)
    assert any(not torch.equal(different[2][n], last[n]) for n in last)
    card = (made["1", "raw"] / "README.md").read_text()
    assert "1 student updates, raw weights" in card


def test_a_checkpoint_of_another_recipe_is_refused(tiny, plugins, tmp_path):
    for name, overrides in (("first", ()), ("same", ("train.max_steps=3",)), ("other", ("data.modes=5",))):
        run.train(tiny("model.teacher.steps=5", *overrides), plugins, tmp_path / name)
    theirs = {name: str(next((tmp_path / name / "checkpoints").glob("step-*"))) for name in ("same", "other")}
    export_run(tmp_path / "first", plugins, tmp_path / "student", at=theirs["same"])
    with pytest.raises(
        InputError, match=r"(?s)other/checkpoints/step-000004: is of another recipe than .*first.*data.modes: 5"
    ):
        export_run(tmp_path / "first", plugins, tmp_path / "student", at=theirs["other"])


def test_the_card_and_the_checkpoints_say_what_they_are_where_tools_look(finished, plugins, piped):
    data = ModelCard.load(finished / "student" / "README.md").data
    assert data.library_name == "diffusers" and data.pipeline_tag == "text-to-image" and "few-step" in data.tags
    measured = json.loads((finished / "evaluation.json").read_text())
    assert {result.metric_type: result.metric_value for result in data.eval_results} == pytest.approx(measured, abs=1e-5)
    recipe = piped("sdxl")
    backbone = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    data = _metadata(recipe, backbone, {"hub": "owner/base", "licence": "mit"}, {}, adapter_alone=True).to_dict()
    assert data["base_model"] == "owner/base" and data["base_model_relation"] == "adapter" and "lora" in data["tags"]
    named = {"hub": "owner/base", "licence": "other", "licence_name": "a licence", "licence_link": "LICENSE.md"}
    data = _metadata(recipe, backbone, named, {}, adapter_alone=True).to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "a licence", "LICENSE.md")
    with safe_open(finished / "checkpoints" / "step-000002" / "student.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "2", "recipe": recipe.name, "amd_plugin": amd_plugin.__version__}


@pytest.mark.parametrize(
    ("family", "tag"), [("sdxl", "text-to-image"), ("sd3", "text-to-image"), ("wan", "text-to-video"), ("dit", None)]
)
def test_the_hub_lists_a_student_among_its_kind(family, tag, piped, plugins):
    recipe = piped(family)
    backbone = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    assert _metadata(recipe, backbone, None, {}, adapter_alone=False).to_dict().get("pipeline_tag") == tag


def test_the_code_of_a_card_runs_where_there_are_few_classes(tiny, plugins, tmp_path, monkeypatch):
    recipe = tiny("data.classes=3")
    backbone = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    backbone.network.save_pretrained(tmp_path / "transformer")
    backbone.scheduler.save_pretrained(tmp_path / "scheduler")
    write_card(tmp_path, backbone, recipe, run=tmp_path, step=1, weights="ema")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(tmp_path / "README.md", "python")
    exec(code, names := {})
    assert names["x"].shape == (8, 2) and set(names["labels"].tolist()) == {0, 1, 2}


def test_a_licence_with_a_name_of_its_own_is_passed_on_whole(tmp_path):
    card = "---\nlicense: other\nlicense_name: a licence\nlicense_link: LICENSE.md\n---\n"
    (tmp_path / "README.md").write_text(card)
    found = _base(str(tmp_path), None)
    assert (found["licence"], found["licence_name"], found["licence_link"]) == ("other", "a licence", "LICENSE.md")


def test_repeating_it_replaces_the_folder_whole(finished, plugins):
    target = finished / "student"
    (target / "leftover").write_text("of an export in another format")
    list_files(target)
    export_run(finished, plugins)
    assert not (target / "leftover").exists()
    assert DiffusionPipeline.from_pretrained(target).scheduler.config.num_train_timesteps == 1000
    assert not list(finished.glob(".student*")), "no drafts stay behind"


def test_the_adapter_alone(finished, plugins, tmp_path, pipeline_folder):
    folder = export_run(finished, plugins, tmp_path / "adapter", how="lora")
    assert {path.name for path in folder.iterdir()} >= {LORA_FILE, "README.md", "scheduler"}
    assert not (folder / "unet").exists()
    base = DiffusionPipeline.from_pretrained(pipeline_folder("sdxl"))
    base.load_lora_weights(folder, weight_name=LORA_FILE)
    assert base.get_list_adapters()["unet"]


def test_what_cannot_be_exported(finished, plugins, tmp_path, cli, piped):
    def said(*arguments):
        code, printed = cli("export", *arguments)
        assert code == 2, printed
        return printed

    assert "holds no run" in said(tmp_path / "nowhere")
    assert "7" in said(finished, "--checkpoint", "7")
    run.train(piped("dit", "model.roles=separate", "rewards=[{name: random}]"), plugins, tmp_path / "full")
    assert "trained in full and has no adapter" in said(tmp_path / "full", "--format", "lora")


def test_files_of_others_are_refused_before_anything_is_read(finished, plugins, tmp_path, cli):
    def refused(folder, *arguments, name):
        code, printed = cli("export", finished, "--checkpoint=77", *arguments)  # which is found out later
        assert code == 2 and f"{folder}: holds what no export has written: {name}. Move it elsewhere" in printed, printed

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    refused(mine, "--output", mine, name="thesis.tex")
    (mine / "README.md").write_text("# My thesis")
    refused(mine, "--output", mine, name="README.md, thesis.tex")
    ours = tmp_path / "ours"
    for _ in range(2):  # the second time in place of the first
        export_run(finished, plugins, ours)
    (ours / "unet" / "notes").write_text("years of work")
    refused(ours, "--output", ours, name="unet/notes")
    (ours / "unet" / "notes").unlink()
    (ours / "checksums.json").unlink()  # as an earlier version left it
    export_run(finished, plugins, ours)
    (ours / "checksums.json").unlink()
    (ours / ".git").mkdir()
    refused(ours, "--output", ours, name=".git")
    own = finished / "student"
    (own / "thesis.tex").symlink_to(mine / "thesis.tex")
    refused(own, name="thesis.tex")
    (own / "thesis.tex").unlink()
    (own / "thesis.tex").write_text("years of work")
    code, printed = cli("train", "--resume", finished, "--set=train.max_steps=3")
    assert code == 2 and f"{own}: holds what no export has written: thesis.tex" in printed, printed


def test_what_comes_into_the_students_folder_while_a_run_goes_on_is_not_lost(tiny, plugins, tmp_path):
    folder = tmp_path / "run"

    class Writer:
        @amd_plugin.hookimpl
        def distill_on_step(self):
            (folder / "student").mkdir(exist_ok=True)
            (folder / "student" / "thesis.tex").write_text("years of work")

    plugins.register(Writer())
    with pytest.raises(RunError, match=r"(?s)student: holds what no export has written: thesis.tex.*at its end.*--resume"):
        run.train(tiny(), plugins, folder)
    assert (folder / "student" / "thesis.tex").read_text() == "years of work"


def test_a_student_whose_plugins_were_killed_is_written_again(tmp_path):
    (tmp_path / "weights").write_text("ours")
    list_files(tmp_path, complete=False)
    (tmp_path / "half").write_text("of a plugin")
    check_replaceable(tmp_path)
    list_files(tmp_path)
    (tmp_path / "more").write_text("of somebody")
    with pytest.raises(InputError, match="holds what no export has written: more"):
        check_replaceable(tmp_path)


def test_a_link_that_was_named_leads_to_the_folder_that_is_written(finished, tmp_path, cli):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "student")
    for _ in range(2):
        code, printed = cli("export", finished, "--output", tmp_path / "link")
        assert code == 0 and (tmp_path / "link").is_symlink(), printed
    assert network(tmp_path / "disk" / "student")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    code, printed = cli("export", finished, "--output", tmp_path / "loop")
    assert code == 2 and "leads nowhere" in printed


def test_a_hub_that_cannot_be_reached_costs_nothing(finished, cli, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, said = cli("export", finished, "--push-to-hub", "acme/student")
    assert code == 1 and "--push-to-hub acme/student" in said and "is complete; try again" in said
    assert "writing the student" in said and "uploading the student to acme/student" in said
    assert network(finished / "student")


def test_pushing_first_creates_a_private_repository(finished, monkeypatch):
    """Against a server on this machine that answers the first of the hub's calls, and refuses the upload."""
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.path, json.loads(body) if body.startswith(b"{") else {}))
            created = self.path == "/api/repos/create"
            answer = json.dumps({"url": "http://hub/acme/student"} if created else {"error": "no uploads here"}).encode()
            self.send_response(200 if created else 403)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(export, "HfApi", lambda: HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="of-a-test"))
    try:
        with pytest.raises(RunError, match=r"--push-to-hub acme/student: .* is complete; try again"):
            push(finished / "student", "acme/student")
    finally:
        server.shutdown()
        server.server_close()
    path, body = asked[0]
    assert path == "/api/repos/create" and (body["organization"], body["name"]) == ("acme", "student")
    assert body.get("private") or body["visibility"] == "private", "unless --public"


def test_a_student_that_starts_from_another_is_of_that_one(finished, piped, plugins, tmp_path):
    first = export_run(finished, plugins, tmp_path / "another")
    recipe = piped(
        "sdxl", f"model.student_from={first}", "model.roles=separate", "rewards=[{name: random}]", "train.max_steps=1"
    )
    run.train(recipe, plugins, tmp_path / "second")
    assert "prompts for another." in (tmp_path / "second" / "student" / "README.md").read_text()


def test_what_a_class_keeps_in_fp32_stays_so_in_a_student_of_half_precision(piped, plugins, tmp_path):
    settings = ("model.roles=separate", "model.dtype=bf16", "rewards=[{name: random}]", "train.max_steps=1")
    run.train(piped("wan", *settings), plugins, tmp_path / "run")
    dtypes = {name: value.dtype for name, value in network(tmp_path / "run" / "student", "transformer").items()}
    kept = {name for name in dtypes if "scale_shift_table" in name or "time_embedder" in name}
    assert kept and {dtypes[name] for name in kept} == {torch.float32}
    assert {value for name, value in dtypes.items() if "to_q" in name} == {torch.bfloat16}
