"""From a pipeline folder to a few-step student that plain diffusers loads: every family, every way of sharing weights."""

import functools
import re

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from amd_plugin.host import run
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.trainer import Trainer
from tests.helpers.pipelines import BUILD, elsewhere

FULL = ("model.roles=separate",)


def spied(monkeypatch):
    """Timesteps at which students are called from now on, without gradient and with."""
    visited = set()

    def watched(original, self, *arguments, **options):
        hook = self.roles.student.network.register_forward_pre_hook(
            lambda module, args, kwargs: visited.update(
                torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else None)).flatten().tolist()
            ),
            with_kwargs=True,
        )
        try:
            return original(self, *arguments, **options)
        finally:
            hook.remove()

    for name in ("descent", "leave", "rollout"):
        monkeypatch.setattr(Forward, name, functools.partialmethod(functools.partial(watched, getattr(Forward, name))))
    return visited


@pytest.mark.parametrize("family", BUILD)
def test_the_card_of_a_student_runs_without_us_and_visits_what_was_trained(family, piped, plugins, tmp_path, monkeypatch):
    visited = spied(monkeypatch)
    evaluation = run.train(piped(family, *FULL, "train.max_steps=4"), plugins, tmp_path / "run")
    assert all(value == value for value in evaluation.values())
    student = tmp_path / "run" / "student"
    card = (student / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    call = next(line for line in code.splitlines() if "pipeline(" in line)
    spy = """
import json
visited = []
kind = type(pipeline.scheduler)
step = kind.step
kind.step = lambda self, output, t, *a, **k: (visited.append(float(t)), step(self, output, t, *a, **k))[1]
"""
    sampled = elsewhere(code.replace(call, spy + call) + "\nprint(json.dumps(visited))", cwd=student)
    assert len(sampled) == 4 and visited <= set(sampled) and len(visited) > 1


@pytest.mark.parametrize(("family", "transition"), [("sdxl", "sde"), ("sdxl", "ode"), ("wan", "ode"), ("sd3", "ode")])
def test_the_exported_pipeline_makes_what_was_evaluated(family, transition, piped, plugins, tmp_path):
    """Same noise in, same latents out: text encoders, scheduler, network and call all agree with training."""
    recipe = piped(family, *FULL, f"model.transition={transition}", "evaluate.samples=10", "evaluate.batch_size=2")
    run.train(recipe, plugins, tmp_path / "run")
    trainer = Trainer(recipe, plugins, Accelerator(cpu=True))
    made = load_file(tmp_path / "run" / "samples" / "latest.safetensors")

    from amd_plugin.randomness import generator

    draws = generator(0, "evaluation")
    noise = torch.randn((len(made["labels"]), *trainer.backbone.sample_shape), generator=draws)[:2]
    prompts = trainer.task.prompts(made["labels"][:2])
    save_file({"noise": noise, "state": draws.get_state()}, tmp_path / "start.safetensors")
    call = trainer.backbone.family.sampling(prompts[0], trainer.backbone.size)
    call |= {"prompt": prompts, "num_inference_steps": 4}
    sampled = elsewhere(
        f"""
        import json, torch
        from diffusers import DiffusionPipeline
        from safetensors.torch import load_file
        start = load_file({str(tmp_path / "start.safetensors")!r})
        draws = torch.Generator(); draws.set_state(start["state"])
        pipeline = DiffusionPipeline.from_pretrained({str(tmp_path / "run" / "student")!r})
        made = pipeline(**{call!r}, latents=start["noise"], generator=draws, output_type="latent")
        made = made.frames if hasattr(made, "frames") else made.images
        print(json.dumps(made.tolist()))
        """,
        cwd=tmp_path,
    )
    torch.testing.assert_close(torch.tensor(sampled), made["samples"][:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_an_adapter_in_the_stock_pipeline_equals_the_exported_one(family, piped, plugins, tmp_path, pipeline_folder):
    run.train(piped(family, "model.transition=ode", "model.roles=shared_base"), plugins, tmp_path / "run")
    extra = {"height": 16, "width": 16, "num_frames": 4, "max_sequence_length": 8} if family == "wan" else {}
    sampled = elsewhere(
        f"""
        import json, torch
        from diffusers import DiffusionPipeline
        full = DiffusionPipeline.from_pretrained({str(tmp_path / "run" / "student")!r})
        base = DiffusionPipeline.from_pretrained({str(pipeline_folder(family))!r})
        plain = DiffusionPipeline.from_pretrained({str(pipeline_folder(family))!r}, scheduler=full.scheduler)
        base.load_lora_weights({str(tmp_path / "run" / "student" / "lora")!r}, weight_name="pytorch_lora_weights.safetensors")
        base.scheduler = full.scheduler
        def sample(pipeline):
            torch.manual_seed(0)
            made = pipeline("a red fox", guidance_scale=1.0, num_inference_steps=4, output_type="latent", **{extra!r})
            return (made.frames if hasattr(made, "frames") else made.images).flatten().tolist()
        print(json.dumps([sample(full), sample(base), sample(plain)]))
        """,
        cwd=tmp_path,
    )
    full, base, plain = map(torch.tensor, sampled)
    torch.testing.assert_close(full, base, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(full, plain, atol=1e-3), "the adapter does nothing"
