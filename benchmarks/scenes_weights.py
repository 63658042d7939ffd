"""Makes the weights of scenes that come with the package, and the tables that say how good they are.

    python benchmarks/scenes_weights.py judges          # trains judges a, b and c: one to three processor minutes each
    python benchmarks/scenes_weights.py teacher         # trains the recipe's teacher: 0.27 processor seconds per update
    python benchmarks/scenes_weights.py check           # judges on real and on falsified scenes, and the teacher's gate
    python benchmarks/scenes_weights.py tilt            # what the reward could reach: the teacher's samples, weighted
    python benchmarks/scenes_weights.py start           # a student of DMD with its fake score: 30 processor minutes

Weights are kept in fp16. One thread each; everything is keyed, so that the same machine makes the same bits.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from amd_plugin.host import checkpoint
from amd_plugin.host.run import train
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.embedded.pipelines import about_teacher, made_pipeline, trained_parts
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe.loading import load
from amd_plugin.tasks import shipped
from amd_plugin.tasks.scenes import judges
from amd_plugin.tasks.scenes.grammar import KINDS
from amd_plugin.threads import one_thread

PLUGINS = get_plugin_manager()
RECIPE = load(str(Path(__file__).parents[1] / "recipes" / "scenes.yaml"), PLUGINS)
TASK, MODEL = RECIPE.task, RECIPE.config.model
# A run's folder with the parts that `model.student_from` and `model.fake_score_from` read.
START = Path(__file__).parent / "starts" / "scenes"


def make_judges(names):
    objects, colours = TASK.made_of["objects"], TASK.made_of["colours"]
    for name in names:
        network, start = judges.untrained(name, objects, colours, 0), time.process_time()
        losses = judges.train(network, name, objects, colours, 0, judges.STEPS[name])
        about = judges.made_of(name, objects, colours, 0)
        save(f"scenes_judge_{name}", network.state_dict(), about)
        print(f"judge {name}: last loss {losses[-1]:.4f}, {time.process_time() - start:.0f} processor seconds", flush=True)


def make_teacher():
    start = time.process_time()

    def log(step, loss):
        if step % 50 == 0:
            print(f"update {step}: loss {loss:.4f}, {time.process_time() - start:.0f} processor seconds", flush=True)

    pipeline, component = made_pipeline(MODEL, TASK, MODEL.teacher.seed, PLUGINS.families(), log)
    save("scenes_teacher", trained_parts(pipeline, component), about_teacher(MODEL, TASK, MODEL.teacher.seed))


def make_start(run):
    """Trains a student with DMD, or goes on in the folder `run`, and keeps its networks in `START`."""
    train(load("scenes", PLUGINS, ["train.seed=102", "train.max_steps=600"], "dmd"), PLUGINS, run, resume="auto")
    pipeline = DiffusionPipeline.from_pretrained(run / "student", dtype=torch.float16)
    pipeline.save_pretrained(START / "student")
    newest = checkpoint.find(run / "checkpoints")
    fake_score = {name: value.half() for name, value in checkpoint.load(newest)[0]["fake_score"].items()}
    checkpoint.save(START / "checkpoints", checkpoint.step_of(newest), {"fake_score": fake_score}, {}, keep=1)


def save(kind, tensors, about):
    file = shipped.FOLDER / f"{kind}.safetensors"
    shipped.write(file, tensors, about)
    files = sorted(shipped.FOLDER.glob("*.safetensors"))
    sums = "".join(f"{shipped.sha256(each)}  {each.name}\n" for each in files)
    (shipped.FOLDER / "SHA256SUMS").write_text(sums)


def teacher(scale, count):
    """(media, labels) of `count` samples at guidance `scale`."""
    backbone = load_backbone(MODEL, TASK, 0, PLUGINS.families())
    samples, labels = teacher_samples(backbone, MODEL, TASK, 0, count, scale, 48)
    return backbone.decode_in_parts(samples, 48), labels, samples


def check(scales, count):
    print("| real scenes | right | soft | by kind |\n|---|---|---|---|")
    labels = TASK.balanced_labels(3000)
    pictures = TASK.pictures(labels, torch.Generator().manual_seed(1))
    for name in "ab":
        verdict = TASK.verdict(name, pictures, TASK.prompts(labels))
        kinds = by_kind(verdict.right.float(), labels)
        print(f"| judge {name} | {verdict.right.float().mean():.3f} | {verdict.soft.median():.2f} | {kinds} |", flush=True)
    names = ["score", *KINDS, "soft", "blended", "gap", "frechet", "precision", "recall", "diversity"]
    print(f"\n| teacher, {count} samples | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    best = {"score": 0.0}
    for scale in scales:
        media, labels, samples = teacher(scale, count)
        found = TASK.evaluate(media, labels, samples)
        print(f"| w = {scale:g} | {' | '.join(f'{found[name]:.3f}' for name in names)} |", flush=True)
        best = max(best, found, key=lambda each: each["score"])
    singles, others = best["single"], [best[kind] for kind in KINDS if kind != "single"]
    passes = singles >= 0.85 and 0.5 <= best["score"] <= 0.8 and max(others) < 1
    verdict = "passed" if passes else "FAILED"
    print(f"\nThe gate at the best guidance (singles >= .85, score .5 to .8, errors in each other kind): {verdict}")
    if not passes:
        raise SystemExit(1)


def by_kind(right, labels):
    return " ".join(f"{right[torch.isin(labels, rows)].mean():.3f}" for rows in TASK._kinds)


def tilt(scales, count):
    """The teacher's samples drawn again within their prompt, with probability ``exp(strength * advantage)`` by judge A.

    That is what a student could reach that has the teacher's samples and the reward, and what it would pay for it.
    """
    names = ["score", *KINDS, "soft", "blended", "gap", "frechet", "precision", "recall", "diversity"]
    print(f"| samples, strength | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for scale in scales:
        media, labels, samples = teacher(scale, count)
        reward = TASK.verdict("a", media, TASK.prompts(labels)).soft
        same = (labels[:, None] == labels).double()
        mean = (same * reward).sum(1) / same.sum(1)
        advantage = ((reward - mean) / 2).clamp(-1, 1)
        chance = torch.rand(same.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gumbel = -(-chance.log()).log()
        drawn = {f"w = {scale:g}, as drawn": torch.arange(count)}
        for strength in (0, 1, 2, 4):
            logits = (strength * advantage + gumbel).masked_fill(same == 0, -torch.inf)
            drawn[f"w = {scale:g}, {strength}"] = logits.argmax(1)
        drawn[f"w = {scale:g}, best"] = (reward + 1e-6 * gumbel).masked_fill(same == 0, -torch.inf).argmax(1)
        for name, rows in drawn.items():
            found = TASK.evaluate(media[rows], labels, samples[rows])
            print(f"| {name} | {' | '.join(f'{found[each]:.3f}' for each in names)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["judges", "teacher", "check", "tilt", "start"])
    parser.add_argument("--judges", default="a,b,c")
    parser.add_argument("--scales", default="1,2,3")
    parser.add_argument("--samples", type=int, default=720)
    parser.add_argument("--run", type=Path, default=Path("runs") / "scenes_start", help="folder of the run that `start` makes")
    given = parser.parse_args()
    scales = json.loads(f"[{given.scales}]")
    with one_thread():
        if given.what == "judges":
            make_judges(given.judges.split(","))
        elif given.what == "teacher":
            make_teacher()
        elif given.what == "start":
            make_start(given.run)
        else:
            {"check": check, "tilt": tilt}[given.what](scales, given.samples)


if __name__ == "__main__":
    main()
