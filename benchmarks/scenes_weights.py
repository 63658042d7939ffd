"""Makes the weights of scenes that come with the package, and the tables that say how good they are.

    python benchmarks/scenes_weights.py judges          # trains judges a, b and c: one to three processor minutes each
    python benchmarks/scenes_weights.py teacher         # trains the recipe's teacher: 0.27 processor seconds per update
    python benchmarks/scenes_weights.py check           # judges on real and on falsified scenes, and the teacher's gate
    python benchmarks/scenes_weights.py limits          # judges on pictures unlike those that they learned from
    python benchmarks/scenes_weights.py tilt            # what the reward could reach: the teacher's samples, weighted
    python benchmarks/scenes_weights.py start           # a student of DMD with its fake score: 30 processor minutes

Weights are kept in fp16. One thread each; everything is keyed, so that the same machine makes the same bits. With
`--set data.objects=...` and other settings of the recipe, `check`, `limits` and `tilt` are about these: their judges and their
teacher are trained first and kept in the cache.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline

from amd_plugin.host import checkpoint
from amd_plugin.host.run import train
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.embedded.pipelines import about_teacher, made_pipeline, trained_parts
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.randomness import generator
from amd_plugin.recipe.loading import load
from amd_plugin.tasks import shipped
from amd_plugin.tasks.scenes import judges, sprites
from amd_plugin.tasks.scenes.grammar import KINDS, PLURALS, _a
from amd_plugin.tasks.scenes.pictures import EDGE
from amd_plugin.threads import one_thread

PLUGINS = get_plugin_manager()
COUNT = 200  # pictures of each row of `limits`
GATE = (1, 2, 3)  # guidance scales, of which the best has to pass
# A run's folder with the parts that `model.student_from` and `model.fake_score_from` read.
START = Path(__file__).parent / "starts" / "scenes"


def recipe(overrides=()):
    return load(str(Path(__file__).parents[1] / "recipes" / "scenes.yaml"), PLUGINS, overrides)


def make_judges(names):
    made_of = recipe().task.made_of
    objects, colours = made_of["objects"], made_of["colours"]
    for name in names:
        network, start = judges.untrained(name, objects, colours, 0), time.process_time()
        losses = judges.train(network, name, objects, colours, 0, judges.STEPS[name])
        about = judges.made_of(name, objects, colours, 0)
        save(f"scenes_judge_{name}", network.state_dict(), about)
        print(f"judge {name}: last loss {losses[-1]:.4f}, {time.process_time() - start:.0f} processor seconds", flush=True)


def make_teacher():
    start, found = time.process_time(), recipe()
    task, model = found.task, found.config.model

    def log(step, loss):
        if step % 50 == 0:
            print(f"update {step}: loss {loss:.4f}, {time.process_time() - start:.0f} processor seconds", flush=True)

    pipeline, component = made_pipeline(model, task, model.teacher.seed, PLUGINS.families(), log)
    save("scenes_teacher", trained_parts(pipeline, component), about_teacher(model, task, model.teacher.seed))


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
    (shipped.FOLDER / shipped.SUMS).write_text(sums)
    sprites.DRAWINGS.write_text(sprites.drawings() + "\n")  # make all weights anew where it changes


def teacher(found, scale, count):
    """(media, labels, samples) of `count` samples at guidance `scale`."""
    model, task = found.config.model, found.task
    backbone = load_backbone(model, task, 0, PLUGINS.families())
    samples, labels = teacher_samples(backbone, model, task, 0, count, scale, 48)
    return backbone.decode_in_parts(samples, 48), labels, samples


def check(recipe, scales, count):
    task = recipe.task
    print("| real scenes | right | soft | by kind |\n|---|---|---|---|")
    labels = task.balanced_labels(3000)
    pictures = task.pictures(labels, torch.Generator().manual_seed(1))
    for name in "ab":
        verdict = task.verdict(name, pictures, task.prompts(labels))
        kinds = by_kind(task, verdict.right.float(), labels)
        print(f"| judge {name} | {verdict.right.float().mean():.3f} | {verdict.soft.median():.2f} | {kinds} |", flush=True)
    names = ["score", *KINDS, "soft", "blended", "gap", "frechet", "precision", "recall", "diversity"]
    print(f"\n| teacher, {count} samples | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    found = {}
    for scale in scales:
        media, labels, samples = teacher(recipe, scale, count)
        found[scale] = task.evaluate(media, labels, samples)
        print(f"| w = {scale:g} | {' | '.join(f'{found[scale][name]:.3f}' for name in names)} |", flush=True)
    verdict = gate(found)
    print(f"\nThe gate at the best guidance (singles >= .85, score .5 to .8, errors in each other kind): {verdict}")
    if verdict.startswith("FAILED"):
        raise SystemExit(1)


def gate(found):
    """``passed`` or ``FAILED`` with the reasons, of metrics by guidance scale; ``not decided`` where scales are missing."""
    if missing := sorted(set(GATE) - set(found)):
        asked = ", ".join(f"{scale:g}" for scale in missing)
        return f"not decided: the best guidance is not known without w = {asked}; give --scales {','.join(map(str, GATE))}"
    best = max(found.values(), key=lambda each: each["score"])
    problems = []
    if best["single"] < 0.85:
        problems.append(f"singles {best['single']:.3f}")
    if not 0.5 <= best["score"] <= 0.8:
        problems.append(f"score {best['score']:.3f}")
    problems += [f"no error in {kind}" for kind in KINDS if kind != "single" and best[kind] == 1]
    return f"FAILED: {', '.join(problems)}" if problems else "passed"


def limits(recipe):
    """Prints the share found right of pictures that are unlike those that the judges learned from, 200 of each.

    Such pictures are whole sprites on white, apart from each other, a little blurred and noisy. A generator's need not be.
    """
    task = recipe.task
    one, other, many = (task.made_of["objects"][place] for place in (-2, -1, 2))
    pictures = Strange(task)
    print("| picture | asked for | in truth | A: right | B: right |\n|---|---|---|---|---|")

    def row(picture, prompt, truth, media):
        shares = [task.verdict(judge, media, [prompt] * len(media)).right.float().mean() for judge in "ab"]
        print(f"| {picture} | {prompt} | {truth} | {shares[0]:.2f} | {shares[1]:.2f} |", flush=True)

    whole = [Placed(one, 0, 6, 6)]
    row(f"{_a(one)}", _a(one), "right", pictures(whole))
    row("the same, dimmed to .75", _a(one), "right", 0.75 * pictures(whole))
    row("the same, on pink", _a(one), "right", pictures(whole) * torch.tensor([1.0, 0.85, 0.85])[:, None, None])
    row("the same, and a bar of 3 columns in one colour", _a(one), "wrong", pictures.with_bar(pictures(whole)))
    for shown in (4, 6, 8, 9, 10, 12):
        clipped = [Placed(one, 0, 0, 0), Placed(other, 1, 12, EDGE - shown)]
        row(f"{_a(one)}, and {_a(other)} cut off after {shown} of 12 columns", _a(one), "wrong", pictures(clipped))
    for size in (5, 7):
        small = [Placed(one, 0, 0, 0), Placed(other, 0, 14, 14, size)]
        row(f"{_a(one)}, and {_a(other)} of {size} x {size} pixels", _a(one), "wrong", pictures(small))
    for by, prompt, truth in ((2, f"two {plural(many)}", "right"), (6, _a(many), "wrong")):
        overlapping = [Placed(many, 1, 6, 2), Placed(many, 1, 6, 14 - by)]
        row(f"two {plural(many)} that overlap by {by} columns", prompt, truth, pictures(overlapping))
    five = [Placed(one, 0, 7, 7), *(Placed(one, 0, y, x) for y in (0, 14) for x in (0, 14))]
    row(f"five {plural(one)}, one of them under the four others", f"four {plural(one)}", "wrong", pictures(five))


def plural(name):
    return PLURALS.get(name, name + "s")


class Placed(NamedTuple):
    """A sprite at (y, x); `size` its place among the sizes 10 and 12, `shrunk` to so many pixels where that is given."""

    name: str
    size: int
    y: int
    x: int
    shrunk: int | None = None


class Strange:
    """Draws sprites of random colours at any place, also beyond the border and over each other."""

    def __init__(self, task):
        self._task, self._draws = task, generator(0, "limits")

    def __call__(self, placed):
        """Pictures [200, 3, 24, 24]; what comes later in `placed` covers what came before."""
        canvas = torch.ones(COUNT, 3, 2 * EDGE, 2 * EDGE)
        for thing in placed:
            colours = torch.randint(len(self._task.made_of["colours"]), (COUNT,), generator=self._draws)
            sprite = self._task.pictures.bank[self._task.made_of["objects"].index(thing.name), colours, thing.size]
            if thing.shrunk is not None:
                sprite = torch.nn.functional.interpolate(sprite[..., :10, :10], size=(thing.shrunk, thing.shrunk), mode="area")
            size = sprite.shape[-1]
            part = canvas[:, :, thing.y : thing.y + size, thing.x : thing.x + size]
            part.copy_(part * (1 - sprite[:, 3:]) + sprite[:, :3])
        return canvas[:, :, :EDGE, :EDGE]

    def with_bar(self, media):
        media = media.clone()
        media[..., :3] = torch.rand(len(media), 3, 1, 1, generator=self._draws)
        return media


def by_kind(task, right, labels):
    return " ".join(f"{right[torch.isin(labels, rows)].mean():.3f}" for rows in task._kinds)


def tilt(recipe, scales, count):
    """The teacher's samples drawn again within their prompt, with probability ``exp(strength * advantage)`` by judge A.

    That is what a student could reach that has the teacher's samples and the reward, and what it would pay for it.
    """
    names = ["score", *KINDS, "soft", "blended", "gap", "frechet", "precision", "recall", "diversity"]
    print(f"| samples, strength | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    task = recipe.task
    for scale in scales:
        media, labels, samples = teacher(recipe, scale, count)
        reward = task.verdict("a", media, task.prompts(labels)).soft
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
            found = task.evaluate(media[rows], labels, samples[rows])
            print(f"| {name} | {' | '.join(f'{found[each]:.3f}' for each in names)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["judges", "teacher", "check", "limits", "tilt", "start"])
    parser.add_argument("--judges", default="a,b,c")
    parser.add_argument("--scales", default="1,2,3")
    parser.add_argument("--samples", type=int, default=720)
    parser.add_argument("--run", type=Path, default=Path("runs") / "scenes_start", help="folder of the run that `start` makes")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override")
    given = parser.parse_args()
    if given.overrides and given.what in ("judges", "teacher", "start"):
        parser.error(f"--set: the weights of the package are the recipe's, and '{given.what}' makes these; leave --set out")
    scales = json.loads(f"[{given.scales}]")
    with one_thread():
        if given.what == "judges":
            make_judges(given.judges.split(","))
        elif given.what == "teacher":
            make_teacher()
        elif given.what == "start":
            make_start(given.run)
        elif given.what == "limits":
            limits(recipe(given.overrides))
        else:
            {"check": check, "tilt": tilt}[given.what](recipe(given.overrides), scales, given.samples)


if __name__ == "__main__":
    main()
