"""AMD in LightX2V itself, through its train.py and trainers, on its own example YAMLs at a tiny size."""

import logging
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from plugin import Levels, unchecked
from rank_lightx2v import ROWS
from ranks import two_ranks
from tiny_lightx2v import EXAMPLES, ROOT, Run, built, config, files

from amd_plugin.adapters import lightx2v as adapter
from amd_plugin.adapters.lightx2v_host import HOST, TRAINER_REGISTER
from amd_plugin.adapters.lightx2v_trainer import Adaptive
from amd_plugin.adapters.offers import LIGHTX2V_VIDEO
from amd_plugin.errors import InputError, MissingDependency
from tests.helpers.documentation import blocks

HACKABLE = [{"name": "hackable"}, {"name": "random", "weight": 0.5}]
TRAINERS = list(EXAMPLES)


def brightness(media, prompts):
    assert media.shape == (4, 3, 5, 16, 16) and media.min() >= 0 and media.max() <= 1, media.shape
    assert prompts == ["a cat", "a cat", "a dog", "a dog"]
    return media.flatten(1).mean(1)


def run(name="video_dmd", reward=brightness, **amd):
    example, _, ours = EXAMPLES[name]
    return Run(built(ours, config(example, amd={"reward": reward, **amd})))


def written(folder, amd=None, name="video_dmd", **training):
    """The host's YAML of a run of two updates in `folder`, with a checkpoint at each."""
    settings = config(
        EXAMPLES[name][0], amd=amd, output_dir=str(folder / "out"), **{"max_train_iters": 2, "save_every_iters": 1, **training}
    )
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


def launched(file, stock=None):
    """The weights of a run of the host's train.py, by checkpoint."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        if stock is not None:
            patch.setattr(adapter, "FORMS", {"video_dmd": type("Stock", (stock,), {"offers": LIGHTX2V_VIDEO})})
        adapter.launch(["--config", file])
    out = yaml.safe_load(open(file))["training"]["output_dir"]
    folders = sorted(Path(out).glob("checkpoint-*"))
    files = [file for folder in folders for file in (folder / "model_state.pt", folder / "fake_model" / "model_state.pt")]
    return [value for file in files for value in torch.load(file, weights_only=True).values()]


def test_the_command_runs_train_py_with_only_the_method_changed(tmp_path):
    stock = launched(written(tmp_path / "stock"), stock=EXAMPLES["video_dmd"][1])
    off = {"strength": 0, "sharpening": 0, "advantage_guidance": 0, "reward": HACKABLE}
    ours = launched(written(tmp_path / "ours", off))
    assert len(stock) > 40 and all(torch.equal(a, b) for a, b in zip(ours, stock, strict=True))
    moved = launched(written(tmp_path / "moved", {"reward": HACKABLE}))
    assert not all(torch.equal(a, b) for a, b in zip(moved, stock, strict=True))
    line = r"\[train\] iter=2 amd/reward=\d\S+ amd/zone_share=\d\S+ reward/hackable=\d\S+ reward/random=\d"
    assert re.search(line, (tmp_path / "moved" / "out" / "train.log").read_text())


def test_a_run_resumes_with_amds_state_and_from_a_stock_checkpoint(tmp_path, caplog):
    launched(written(tmp_path / "ours", {"reward": HACKABLE}))
    launched(written(tmp_path / "ours", {"reward": HACKABLE}, max_train_iters=4))
    out = tmp_path / "ours" / "out"
    updates = [yaml.safe_load((out / f"checkpoint-{i:09d}" / "amd_state.json").read_text())["student_updates"] for i in (2, 4)]
    assert updates == [2, 4]
    file, state = (
        written(tmp_path / "ours", {"reward": HACKABLE}, max_train_iters=5),
        out / "checkpoint-000000004" / "amd_state.json",
    )
    for damaged in ("", '{"student_updates": ', "[]", "{}", '{"student_updates": 4, "objective": 5}'):
        state.write_text(damaged)
        with pytest.raises(InputError, match=r"amd_state.json: .*Resume from an earlier checkpoint"):
            launched(file)
    launched(written(tmp_path / "stock"), stock=EXAMPLES["video_dmd"][1])
    with caplog.at_level(logging.WARNING):
        launched(written(tmp_path / "stock", {"reward": HACKABLE}, max_train_iters=3))
    assert "running statistics start anew" in caplog.text
    state = yaml.safe_load((tmp_path / "stock" / "out" / "checkpoint-000000003" / "amd_state.json").read_text())
    assert state["student_updates"] == 3


@pytest.mark.parametrize("name", TRAINERS)
def test_a_checkpoint_is_never_complete_without_amds_state(name, tmp_path, monkeypatch):
    """A run that was stopped in between went on with statistics that started anew, as from a stock checkpoint."""
    trainer = run(name).trainer
    trainer.output_train_dir = str(tmp_path)
    trainer.save_checkpoint(1, 3)
    assert (tmp_path / "checkpoint-000000001" / "amd_state.json").is_file()
    if name.startswith("video_phased"):  # it gives the whole folder its name, and there is no moment before
        return
    seen, save = [], torch.save
    state = tmp_path / "checkpoint-000000002" / "amd_state.json"
    monkeypatch.setattr(torch, "save", lambda *given, **options: (seen.append(state.is_file()), save(*given, **options)))
    trainer.save_checkpoint(2, 3)
    assert seen and all(seen)


@pytest.mark.parametrize("name", TRAINERS)
def test_amd_makes_the_hosts_calls_and_no_more(name):
    counts = []
    for reward in (None, brightness):
        tiny, calls = run(name, reward, sharpening=1.0, strength=0.3), [0]
        for role in [tiny.trainer.teacher_model.denoiser_module(), *tiny.roles()]:
            role.register_forward_hook(lambda *_, calls=calls: calls.__setitem__(0, calls[0] + 1))
        tiny.train(4)
        counts.append(calls[0])
    assert counts[0] == counts[1] > 20


@pytest.mark.parametrize("name", TRAINERS)
def test_rewards_have_statistics_of_each_exit_rung(name):
    tiny = run(name)
    tiny.train(12)
    assert len(tiny.trainer.objective.state_dict()["rewards"]["updates"]) > 2


def test_metrics_go_to_the_hosts_tracker():
    tiny, rows = run("video_phased_dmd", [{"name": "hackable"}]), []
    tiny.trainer.monitor.log_metrics = lambda metrics, step: rows.append(metrics)
    tiny.train(2)
    assert rows and all({"reward/hackable", "amd/reward", "amd/zone_share"} <= set(row) for row in rows)


def test_noise_levels_reach_both_turns():
    everywhere, nowhere = run(strength=0, sharpening_sigma=[0.0, 1.0]), run(strength=0, sharpening_sigma=[0.0, 0.001])
    losses = [tiny.train(3).losses for tiny in (run(strength=0), everywhere, nowhere, run(reward=None))]
    assert losses[0] == losses[1] != losses[2], "a window over all levels is none"
    torch.testing.assert_close(losses[2], losses[3], rtol=1e-5, atol=1e-7)  # and one that is never met weighs nothing
    windowed = run(reward=None, guidance_window=[0.0, 0.001]).train(1).losses
    assert windowed[0] != losses[3][0], "guidance is left out with a reward or without"


def test_the_gradient_of_a_reward_reaches_the_student():
    class Brightness:
        differentiable = True

        def __call__(self, media, prompts):
            return media.flatten(1).mean(1)

    rows = [run("video_dmd", Brightness(), **amd).train(3).losses for amd in ({}, {"reward_gradient": 0.3})]
    assert rows[0] != rows[1] and all(torch.isfinite(torch.stack(losses)).all() for losses in rows)
    with pytest.raises(InputError, match="reward_gradient: needs a reward with gradients"):
        run("video_dmd", brightness, reward_gradient=0.3)


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("reward", [None, brightness], ids=["none", "brightness"])
def test_plugins_move_noise_levels_and_strength(name, reward):
    example, _, ours = EXAMPLES[name]
    levels = Levels()
    ours = type("Ours", (ours,), {"plugins": levels.plugins})
    tiny = Run(built(ours, config(example, amd={"reward": reward, "sharpening": 1.0})))
    seen, denoise = [], tiny.trainer.fake_model.denoise

    def watched(inputs, sigma, condition):
        seen.append(sigma)
        return denoise(inputs, sigma, condition)

    tiny.trainer.fake_model.denoise = watched
    tiny.train(1)
    assert [role for role, *_ in levels.moved] == ["student", "fake_score"]
    assert {count for *_, count in levels.moved} == {None if reward is None else 4}
    low = 0.4 if name != "video_phased_dmd" else 0.8  # the high phase has a floor of its own
    assert all((low <= s).all() and (s <= max(0.5, s.min())).all() for s in seen[:2])
    assert tiny.trainer.objective.schedule_factor == 0.5


@pytest.mark.parametrize("name", ["dmd", "video_dmd", "video_ar_dmd"])
def test_failures_come_again_with_their_own_conditions_and_resume(name):
    amd = {"strength": 0, "sharpening": 1.0, "memory_share": 0.999}
    tiny, stock, replayed = run(name, **amd), run(name, None), []
    denoise = tiny.trainer.fake_model.denoise

    def watched(inputs, sigma, condition):
        texts = condition["prompt_embed"]
        replayed.append((torch.is_grad_enabled(), bool((texts == texts[0]).all())))  # a batch of the host's has two texts
        return denoise(inputs, sigma, condition)

    tiny.trainer.fake_model.denoise = watched
    assert torch.equal(tiny.train(8).random_state, stock.train(8).random_state), "the stream of random numbers"
    assert any(same for trained, same in replayed if trained) and not any(same for trained, same in replayed if not trained)
    again = run(name, **amd)
    again.restore(tiny.state())
    assert again.trainer.failures.state_dict() == tiny.trainer.failures.state_dict() != {}
    straight, resumed = tiny.train(2), again.train(2)
    assert all(map(torch.equal, straight.losses, resumed.losses)) and all(map(torch.equal, straight.weights, resumed.weights))


@pytest.mark.parametrize("name", ["video_dmd", "video_ar_dmd", "video_phased_dmd"])
def test_the_fake_score_is_conditioned_on_rung_and_outcome(name):
    amd = {"sharpening": 0, "advantage_guidance": 4.0, "rung_conditioning": name != "video_phased_dmd"}
    tiny = run(name, **amd)
    tiny.train(3)
    saved, again = tiny.state(), run(name, **amd)
    tables = tiny.trainer._conditions.parameters()
    assert all(table.any() for table in tables) and tiny.trainer._metrics["contrast_ratio"] > 0
    assert {len(table) for table in tables} == ({3} if name == "video_phased_dmd" else {3, 4})
    again.restore(saved)
    assert all(map(torch.equal, tables, again.trainer._conditions.parameters()))
    for network in tiny.trainer._conditions._networks:  # of all phases; 4 times their rate, 1e-3, is nearest to 5e-3
        (outcomes,) = network.outcomes.parameters()
        assert torch.equal(network.state_dict()["outcomes.fake_score.0.table"], 4 * outcomes)


def test_the_hosts_inference_is_judged(tmp_path):
    settings = config(amd={"reward": HACKABLE, "held_out": {"name": "random"}})
    with pytest.raises(InputError, match=r"held_out: judges the samples of inference\.infer_every_iters"):
        built(adapter.AMDVideoDmdTrainer, settings).setup()
    settings["inference"] |= {"method": "wan_t2v_infer", "infer_every_iters": 1, "num_inference_steps": 2, "height": 16,
                              "width": 16, "num_frames": 5, "output_dir": str(tmp_path)}  # fmt: skip
    trainer = built(adapter.AMDVideoDmdTrainer, settings)
    prompts, rows = ["a cat", "a cat", "a dog"], []
    trainer.dataloader_eval = SimpleNamespace(dataset=SimpleNamespace(samples=[{"prompt": prompt} for prompt in prompts]))
    trainer.setup()
    trainer.inferencer.set_data(trainer.dataloader_eval)
    condition = torch.load(files() / "condition-a cat.pt")["positive"]
    trainer.model.encode_prompt_condition = lambda prompt: condition
    trainer.monitor.log_metrics = lambda metrics, step: rows.append((step, metrics))
    trainer.run_inference(7)
    [(step, row)] = rows
    assert step == 7 and {"evaluated_reward/hackable", "held_out/random", "sensor/hackable", "hacking_alarm"} <= set(row)
    assert len(list(tmp_path.rglob("*.mp4"))) == 3 and trainer.validation.state_dict()[0]["step"] == 7


def test_pictures_of_an_image_model_keep_their_graph():
    from diffusers.image_processor import VaeImageProcessor
    from lightx2v_train.model_zoo.flux2_klein import Flux2KleinModel

    model = SimpleNamespace(
        vae=SimpleNamespace(decode=lambda latent: SimpleNamespace(sample=latent)), image_processor=VaeImageProcessor(),
        _denormalize_patch_latents=lambda latent: latent,
    )  # fmt: skip
    model.decode_latent = lambda latent: Flux2KleinModel.decode_latent(model, latent)
    latent = torch.zeros(2, 3, 8, 8, requires_grad=True)
    media = Adaptive._media(SimpleNamespace(model=model, _decodes_with_graph=True), latent)
    media.sum().backward()
    assert (media == 0.5).all() and (latent.grad == 0.5).all()
    assert model.decode_latent(latent.detach())[0].size == (8, 8), "the host itself gets its pictures"


def test_a_fake_score_of_lora_or_of_random_schedules_has_no_tables():
    for change, options, message in (
        (
            {"fake": {"train_type": "lora", "lora": {"rank": 4, "alpha": 4}}},
            {"advantage_guidance": 1.0},
            "advantage_guidance: needs training.fake.train_type",
        ),
        (
            {"fake": {"train_type": "lora", "lora": {"rank": 4, "alpha": 4}}},
            {"rung_conditioning": True},
            "rung_conditioning: needs training.fake.train_type",
        ),
        ({}, {"rung_conditioning": 1}, "rung_conditioning: must be true or false"),
    ):
        settings = config(amd={"reward": brightness, **options})
        for role, parts in change.items():
            settings["training"][role] |= parts
        with pytest.raises(InputError, match=message):
            adapter.AMDVideoDmdTrainer(settings)
    with pytest.raises(InputError, match="rung_conditioning: this trainer does not train"):
        run("video_phased_dmd", rung_conditioning=True)
    with pytest.raises(InputError, match="memory_share: needs a memory of failures"):
        run("video_phased_dmd", memory_share=0.1)


@pytest.mark.parametrize("norm", ["none", "layer_norm", "scalar"])
def test_guidance_is_the_hosts_also_on_packed_outputs_and_rescaled(norm):
    example, stock, ours = EXAMPLES["dmd"]
    losses = []
    for kind, amd in ((stock, None), (ours, {"strength": 0.5, "reward": lambda media, prompts: torch.ones(len(media))})):
        settings = config(example, amd=amd)
        settings["training"]["teacher"]["cfg_norm"] = norm
        tiny = Run(built(kind, settings))
        tiny.trainer.teacher_model.cfg_on_denoiser_output = lambda: True
        losses.append(tiny.train(3).losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-6)


def test_the_options_are_checked_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter.runpy, "run_path", None)
    for amd, message in (
        ({"strenght": 1}, "amd.strenght"),
        ({"guidance_sigma": [0.1, 0.9]}, "amd.guidance_sigma: needs a noise level and a teacher call"),
        ({"match_sigma": [0.1, 0.9]}, "amd.match_sigma: needs noise levels of its own"),
        ([1], "training.dmd.amd: must be a mapping"),
        (False, "training.dmd.amd: must be a mapping of options, got False"),
        ({"reward": "hackabel"}, "hackable"),
        ({"group_size": 0}, "amd.group_size: must be a whole number from 1, got 0"),
        ({"rollouts": "harvest"}, "amd.rollouts: harvest needs samples at all rungs of one rollout"),
        ({"reward": {"name": "random", "weight": "much"}}, "reward.weight"),
    ):
        with pytest.raises(InputError, match=message):
            adapter.launch(["--config", written(tmp_path, amd)])
    other = yaml.safe_load(open(written(tmp_path)))
    other["training"]["method"] = "flow"
    (tmp_path / "flow.yaml").write_text(yaml.safe_dump(other))
    elsewhere = yaml.safe_load(open(written(tmp_path)))
    elsewhere["training"]["amd"] = {"sharpening": 1.0}
    bare = {"training": {"method": "video_dmd", "dmd": None}}
    for name, text in {
        "elsewhere": yaml.safe_dump(elsewhere),
        "bare": yaml.safe_dump(bare),
        "empty": "",
        "list": "[1]",
        "torn": "a: [",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    for words, message in (
        (
            ["--config", str(tmp_path / "elsewhere.yaml")],
            r"training\.amd: nobody reads it there\. Move it to training\.dmd\.amd",
        ),
        (["--config", str(tmp_path / "bare.yaml")], r"training\.dmd: must be a mapping of options, got None"),
        (["--config", str(tmp_path / "empty.yaml")], "LightX2V cannot read it"),
        (["--config", str(tmp_path / "list.yaml")], "LightX2V cannot read it"),
        (["--config", str(tmp_path / "torn.yaml")], "LightX2V cannot read it"),
        (["--config", str(tmp_path / "flow.yaml")], "training.method must be one of dmd, video_dmd"),
        (["--config", "nowhere.yaml"], "nowhere.yaml is not a file"),
    ):
        with pytest.raises(InputError, match=message):
            adapter.launch(words)


def test_the_pages_yaml_and_command_lines_reach_train_py(tmp_path, monkeypatch):
    """Its rewards need weights from the internet; LightX2V's train.py would be next."""
    [block] = blocks("docs/hosts/lightx2v.md", "yaml")
    written(tmp_path, yaml.safe_load(block)["training"]["dmd"]["amd"])
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr(adapter.runpy, "run_path", lambda path, run_name: started.append((Path(path).name, sys.argv)))
    lines = [line for block in blocks("docs/hosts/lightx2v.md", "") for line in block.splitlines()]
    for words in [words for words in map(shlex.split, lines) if "--" in words]:
        adapter.launch(words[words.index("--") + 1 :])
    assert started == [("train.py", ["train.py", "--config", "run.yaml"])] * 2
    assert all(TRAINER_REGISTER[name] is form for name, form in adapter.FORMS.items())


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_pages_group_size_puts_equal_prompts_into_one_batch(tmp_path, shuffle):
    [block] = blocks("docs/hosts/lightx2v.md", "yaml")
    size = yaml.safe_load(block)["training"]["dmd"]["amd"]["group_size"]
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(30)))
    settings = config(amd={"group_size": size})
    settings["data"]["train"] = {
        "name": "prompt_dataset", "data_path": [str(tmp_path / "prompts.txt")], "batch_size": 8, "num_workers": 0,
        "shuffle": shuffle,
    }  # fmt: skip
    loader = built(EXAMPLES["video_dmd"][2], settings).dataloader_train
    loader.sampler.set_epoch(0)
    batches = [batch["conditioning"]["prompt"] for batch in loader]
    assert len(batches) == len(loader) == 15 and all(len(batch) == 8 and len(set(batch)) == 2 for batch in batches)
    assert all(len(set(batch[start : start + size])) == 1 for batch in batches for start in (0, 4))
    order = [prompt for batch in batches for prompt in batch[::size]]
    assert len(set(order)) == 30 and (order == [f"prompt {i}" for i in range(30)]) is not shuffle


def test_a_group_size_needs_whole_groups_and_a_loader_of_rows():
    with pytest.raises(InputError, match=r"dmd\.amd\.group_size: must divide the joined batch of 4 samples.*got 3"):
        built(EXAMPLES["video_dmd"][2], config(amd={"group_size": 3}))
    trainer = EXAMPLES["video_dmd"][2](config(amd={"group_size": 2}))
    with pytest.raises(InputError, match=r"dmd\.amd\.group_size: needs a data loader of rows.*got a list"):
        trainer.set_data([])


def test_a_reward_needs_the_autoencoder():
    settings = config(amd={"reward": brightness})
    settings["model"]["load_vae"] = False
    with pytest.raises(InputError, match="load_vae"):
        adapter.AMDVideoDmdTrainer(settings)


def test_every_method_that_is_overridden_is_compared():
    forms = [
        (form, host) for form, host in zip(adapter.FORMS.values(), (stock for _, stock, _ in EXAMPLES.values()), strict=True)
    ]
    assert unchecked("lightx2v", *forms) == set()


def test_a_host_of_another_version_is_refused_by_method():
    with pytest.raises(MissingDependency, match=r"_encode_conditions takes \(self, sample\), not \(self, batch\).*git clone"):
        HOST.check(EXAMPLES["video_dmd"][1], {"_encode_conditions": "self, batch"})
    assert (ROOT / "train.py").is_file()


@pytest.fixture(scope="module")
def ranks():
    """What the runs of each of two ranks came to; a gather too many on one of them would wait for ever."""
    return two_ranks("rank_lightx2v")


def test_two_ranks_compare_samples_of_one_prompt(ranks):
    first, second = ranks
    assert first["weights"] == second["weights"], "DDP keeps them equal"
    assert first["advantages"] == second["advantages"] and any(first["advantages"])
    assert first["stock"] == first["off"], "to the bit, over ranks too"


def test_a_reward_that_fails_on_one_of_two_ranks_is_neutral_and_holds_up_neither(ranks):
    first, second = (rank["failed"] for rank in ranks)
    # A prompt has one sample on each rank, so none is left to compare that of rank 1 with.
    assert first["advantages"] == second["advantages"] == [0.0] * 4
    assert first["metrics"]["amd/failed_rewards"] == 0.5 and first["metrics"]["amd/reward"] > 0
    assert first["distance"] < 1e-4, "the host's own run, through AMD's code"
    for kind in ("weights", "everything"):
        assert first[kind] == second[kind], "DDP keeps them equal"
    assert first["finite"]


def test_a_row_is_given_to_neighbouring_ranks_also_in_a_shuffled_order(ranks):
    alone, pairs = ([rank["grouped"][size] for rank in ranks] for size in ("1", "2"))
    # LightX2V's own order: three rows to two ranks in turn, the first one again at the end.
    assert [rank["batches"] for rank in alone] == [[["a cat"], ["a fox"]] * 2, [["a dog"], ["a cat"]] * 2]
    assert alone[0]["advantages"] == [0, 0]
    first, second = pairs
    assert first["batches"] == second["batches"] and first["advantages"] == second["advantages"] and any(first["advantages"])
    epochs = [[prompt for [prompt] in first["batches"][start : start + 3]] for start in (0, 3)]
    assert all(sorted(epoch) == sorted(ROWS) for epoch in epochs) and epochs[0] != epochs[1], "each epoch has its own order"
