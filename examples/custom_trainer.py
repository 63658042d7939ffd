"""AMD in a custom trainer, by the lines marked (1) to (9): a one-step student of handwritten digits, in seconds on a CPU.

python examples/custom_trainer.py                                   # AMD; --objective dmd is the baseline
python examples/custom_trainer.py --config mine.yaml                # with keys named as the options
python examples/custom_trainer.py --checkpoint run.pt               # goes on where the last one ended
torchrun --nproc_per_node=2 examples/custom_trainer.py --group-size 2   # a group has samples of all ranks
"""

import copy
import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from amd_plugin import NoiseLevel, Signals, get_plugin_manager, to_x0
from amd_plugin.adapters import offers, shim
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.objectives.reward_statistics import group_ids

CLASSES, PIXELS, GUIDANCE = 10, 64, 1.5
GIVES = {*offers.OFFERS, "noise_level", "fake_score_noise_level"}  # (1) see `Needs`; options that need more are refused by name
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@dataclass
class Settings:
    """Settings of this trainer, beside those of the objective."""

    steps: int = 150
    teacher_steps: int = 1500
    groups: int = field(default=16, metadata={"help": "prompts per batch"})
    group_size: int = field(default=4, metadata={"help": "samples per prompt"})
    checkpoint: str = field(default="", metadata={"help": "file to go on from, and to write"})


class Denoiser(nn.Module):
    """Predicts the flow eps - x0 [B, 64] from x_t [B, 64], noise level [B] and digit [B]; the last class is "no digit"."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.digit, self.image = nn.Embedding(CLASSES + 1, width), nn.Linear(PIXELS + 1, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, PIXELS))

    def forward(self, x: torch.Tensor, t: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        return self.body(self.image(torch.cat([x, t[:, None]], 1)) + self.digit(digit))

    def clean(self, x: torch.Tensor, t: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        return to_x0("flow_prediction", self(x, t, digit), x, NoiseLevel(1 - t, t))

    def sample(self, digit: torch.Tensor) -> torch.Tensor:
        return self.clean(torch.randn(len(digit), PIXELS), torch.ones(len(digit)), digit)  # in one step from noise


def noised(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (1 - t[:, None]) * x0 + t[:, None] * noise


class Trainer:
    """Trains a student and a fake score; `prompts(step)` returns the digits [B] of a rank's batch, the same on every rank."""

    def __init__(self, objective, teacher: nn.Module, score, prompts, steps: int):
        self.objective, self.teacher, self.prompts, self.steps = objective, teacher, prompts, steps
        self.step, self.metrics = 0, {}
        self.bridge = HostBridge(objective, score, plugins=get_plugin_manager())  # (4) from samples to advantages
        self.student, self.fake = (copy.deepcopy(teacher).requires_grad_() for _ in range(2))
        self.students = torch.optim.Adam(self.student.parameters(), lr=2e-4, betas=(0.0, 0.99))
        self.fakes = torch.optim.Adam(self.fake.parameters(), lr=4e-4, betas=(0.0, 0.99))

    def scored_samples(self):  # samples [B, 64], digits [B], advantages [B] within a digit's samples of all ranks
        self.bridge.start_turn(self.step, self.steps, self.metrics)  # (5) plugins may change the strength
        x0 = self.student.sample(digit := self.prompts(self.step))
        return x0, digit, self.bridge.advantages(x0, group_ids(list(map(str, digit.tolist())), len(x0)), digit.tolist())

    def fake_score_turn(self, update: int) -> torch.Tensor:
        x0, digit, _ = self.scored_samples()
        noise = torch.randn(len(x0), PIXELS)
        t = self.bridge.move_noise_levels(torch.rand(len(x0)), "fake_score", self.step, update)  # (6) by plugins
        prediction, weight = self.fake(noised(x0.detach(), noise, t), t, digit), self.bridge.weights(t)
        return updated(self.fakes, self.objective.fake_score_loss(prediction, noise - x0.detach(), weight).loss)  # (7)

    def student_turn(self) -> torch.Tensor:
        x0, digit, advantage = self.scored_samples()
        t = self.bridge.move_noise_levels(0.02 + 0.96 * torch.rand(len(x0)), "student", self.step)
        with torch.no_grad():
            x_t, none = noised(x0, torch.randn(len(x0), PIXELS), t), torch.full_like(digit, CLASSES)
            scores = [f.clean(x_t, t, c) for f, c in ((self.teacher, digit), (self.teacher, none), (self.fake, digit))]
        output = self.bridge.student_loss(Signals(x0, *scores, t, advantage, **self.bridge.signal_fields))  # (8)
        self.metrics, self.step = output.metrics | self.bridge.metrics, self.step + 1
        return updated(self.students, output.loss)

    def state(self) -> dict:
        parts = [part.state_dict() for part in (self.student, self.fake, self.students, self.fakes)]
        return {"parts": parts, "step": self.step, "objective": self.objective.state_dict()}  # (9) JSON-able

    def load(self, state: dict) -> None:
        for part, values in zip((self.student, self.fake, self.students, self.fakes), state["parts"], strict=True):
            part.load_state_dict(values)
        self.objective.load_state_dict(state["objective"])
        self.step = state["step"]


def updated(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    (loss / RANKS).backward()
    for parameter in optimizer.param_groups[0]["params"] if dist.is_initialized() else ():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    return loss.detach()


def main() -> None:
    settings, args = shim.parse(Settings)  # (2) the trainer's own options, --objective and its options
    with shim.exit_on_error():
        objective = shim.make_objective(args, offers=GIVES, guidance_scale=GUIDANCE)  # (3) the objective
    torch.manual_seed(0)
    images, digits = torch.tensor(load_digits().data / 8 - 1).float(), torch.tensor(load_digits().target)
    teacher = Denoiser()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(settings.teacher_steps):
        rows, noise, t = torch.randint(len(images), (256,)), torch.randn(256, PIXELS), torch.rand(256)
        digit = torch.where(torch.rand(256) < 0.1, CLASSES, digits[rows])
        updated(optimizer, (teacher(noised(images[rows], noise, t), t, digit) - (noise - images[rows])).square().mean())
    means = torch.stack([images[digits == digit].mean(0) for digit in range(CLASSES)])
    score = lambda media, prompts: (-torch.cdist(media, means)).log_softmax(1)[range(len(media)), prompts]  # noqa: E731
    drawn = lambda step: torch.randint(CLASSES, (settings.groups,), generator=torch.Generator().manual_seed(step))  # noqa: E731
    prompts = lambda step: drawn(step).repeat_interleave(settings.group_size)  # noqa: E731
    trainer = Trainer(objective, teacher.requires_grad_(False), score, prompts, settings.steps)
    if RANKS > 1:
        dist.init_process_group("gloo")
    if os.path.exists(settings.checkpoint):
        trainer.load(torch.load(settings.checkpoint, weights_only=True))
    while trainer.step < settings.steps:
        torch.manual_seed(RANKS * trainer.step + RANK)  # noise of its own on each rank, and the same in a resumed run
        fake_losses = [trainer.fake_score_turn(update) for update in range(4)]
        loss, reward = trainer.student_turn(), trainer.metrics.get("reward", torch.nan)
        if trainer.step % 50 == 0 and RANK == 0:
            print(f"step {trainer.step:4d}  student {loss:.4f}  fake score {fake_losses[-1]:.4f}  reward {reward:.2f}")
    if settings.checkpoint and RANK == 0:
        torch.save(trainer.state(), settings.checkpoint)
    digit, judge = torch.arange(CLASSES).repeat_interleave(100), KNeighborsClassifier().fit(images, digits)
    print(f"{judge.score(trainer.student.sample(digit).detach(), digit):.2f} of the student's samples show their digit")


if __name__ == "__main__":
    main()
