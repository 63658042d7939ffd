"""AMD in a custom trainer: a one-step student of handwritten digits, in seconds on a CPU.

    python examples/custom_trainer.py                                   # AMD
    python examples/custom_trainer.py --objective dmd                   # the baseline
    python examples/custom_trainer.py --config mine.yaml                # with keys named as the options

The comments (1) to (7) mark the lines that use this package. The rest is a plain distillation loop.
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from amd_plugin import NoiseLevel, Signals, get_plugin_manager, to_x0
from amd_plugin.adapters import shim
from amd_plugin.adapters.bridge import OFFERS, HostBridge
from amd_plugin.errors import AmdPluginError

CLASSES, PIXELS, GUIDANCE = 10, 64, 1.5
GIVES = {*OFFERS, "noise_level"}  # what this trainer can give an objective, see `amd_plugin.hookspecs.Needs`


@dataclass
class Settings:
    """Settings of this trainer, beside those of the objective."""

    steps: int = 150
    teacher_steps: int = 1500
    groups: int = field(default=16, metadata={"help": "prompts per batch"})
    group_size: int = field(default=4, metadata={"help": "samples per prompt"})


class Denoiser(nn.Module):
    """Predicts the flow eps - x0 [B, 64] from x_t [B, 64], noise level [B] and digit [B]; the last class is "no digit"."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.digit = nn.Embedding(CLASSES + 1, width)
        self.image, self.time = nn.Linear(PIXELS, width), nn.Linear(1, width)
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, PIXELS))

    def forward(self, x: torch.Tensor, t: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
        return self.body(self.image(x) + self.time(t[:, None]) + self.digit(digit))


def noised(x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return (1 - t[:, None]) * x0 + t[:, None] * noise


def clean(network: nn.Module, x_t: torch.Tensor, t: torch.Tensor, digit: torch.Tensor) -> torch.Tensor:
    return to_x0("flow_prediction", network(x_t, t, digit), x_t, NoiseLevel(1 - t, t))


def train_teacher(images: torch.Tensor, digits: torch.Tensor, steps: int) -> Denoiser:
    teacher = Denoiser()
    optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (256,))
        x0, digit, noise, t = images[rows], digits[rows], torch.randn(256, PIXELS), torch.rand(256)
        digit = torch.where(torch.rand(256) < 0.1, CLASSES, digit)
        updated(optimizer, (teacher(noised(x0, noise, t), t, digit) - (noise - x0)).square().mean())
    return teacher.eval().requires_grad_(False)


def train_reward(images: torch.Tensor, digits: torch.Tensor) -> nn.Module:
    classifier = nn.Sequential(nn.Linear(PIXELS, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(200):
        updated(optimizer, nn.functional.cross_entropy(classifier(images), digits))
    return classifier.requires_grad_(False)


def sample_student(student: nn.Module, digit: torch.Tensor) -> torch.Tensor:
    """Samples [B, 64] in one step from noise."""
    return clean(student, torch.randn(len(digit), PIXELS), torch.ones(len(digit)), digit)


class Trainer:
    """Trains a student and a fake score; `prompts()` returns the digits [B] of a batch, in groups of equal digits."""

    def __init__(self, objective, teacher: nn.Module, score, prompts, steps: int):
        self.objective, self.teacher, self.prompts, self.steps, self.step = objective, teacher, prompts, steps, 0
        self.bridge = HostBridge(objective, score, plugins=get_plugin_manager())  # (3) from samples to advantages
        self.student, self.fake = (copy.deepcopy(teacher).train().requires_grad_() for _ in range(2))
        self.metrics = {}
        self.students = torch.optim.Adam(self.student.parameters(), lr=2e-4, betas=(0.0, 0.99))
        self.fakes = torch.optim.Adam(self.fake.parameters(), lr=4e-4, betas=(0.0, 0.99))

    def scored_samples(self):
        """(samples [B, 64], digits [B], advantages [B], weights [B] of the fake score's loss)."""
        self.bridge.start_turn(self.step, self.steps, self.metrics)  # (4) plugins may change the strength
        digit = self.prompts()
        x0 = sample_student(self.student, digit)
        return x0, digit, *self.bridge(x0, digit, digit.tolist())

    def fake_score_turn(self, update: int) -> torch.Tensor:
        x0, digit, _, weight = self.scored_samples()
        noise = torch.randn(len(x0), PIXELS)
        t = self.bridge.move_noise_levels(torch.rand(len(x0)), "fake_score", self.step, update)  # (5) by plugins
        prediction = self.fake(noised(x0.detach(), noise, t), t, digit)
        loss = self.objective.fake_score_loss(prediction, noise - x0.detach(), weight).loss  # (6) the fake score's loss
        return updated(self.fakes, loss)

    def student_turn(self) -> torch.Tensor:
        x0, digit, advantage, _ = self.scored_samples()
        t = self.bridge.move_noise_levels(0.02 + 0.96 * torch.rand(len(x0)), "student", self.step)
        with torch.no_grad():
            x_t = noised(x0, torch.randn(len(x0), PIXELS), t)
            cond, uncond = clean(self.teacher, x_t, t, digit), clean(self.teacher, x_t, t, torch.full_like(digit, CLASSES))
            predicted = clean(self.fake, x_t, t, digit)
        output = self.objective.student_loss(Signals(x0, cond, uncond, predicted, t, advantage))  # (7) the student's loss
        self.metrics, self.step = output.metrics, self.step + 1
        return updated(self.students, output.loss)


def updated(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def main() -> None:
    settings, args = shim.parse(Settings)  # (1) the trainer's own options, --objective and its options
    try:
        objective = shim.make_objective(args, offers=GIVES, guidance_scale=GUIDANCE)  # (2) the objective
    except AmdPluginError as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    torch.manual_seed(0)
    pixels, digits = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = pixels.float() / 8 - 1
    teacher = train_teacher(images, digits, settings.teacher_steps)
    classifier = train_reward(images, digits)
    score = lambda media, prompts: classifier(media).log_softmax(1)[range(len(media)), prompts]  # noqa: E731
    prompts = lambda: torch.randint(CLASSES, (settings.groups,)).repeat_interleave(settings.group_size)  # noqa: E731
    trainer = Trainer(objective, teacher, score, prompts, settings.steps)
    for step in range(settings.steps):
        fake_losses = [trainer.fake_score_turn(update) for update in range(4)]
        loss = trainer.student_turn()
        if step % 50 == 0:
            print(f"step {step:4d}  student {loss:.4f}  fake score {fake_losses[-1]:.4f}")
    torch.manual_seed(1)
    judge = train_reward(images, digits)  # not the classifier that served as reward
    digit = torch.arange(CLASSES).repeat_interleave(100)
    for name, network in (("teacher", teacher), ("student", trainer.student)):
        right = judge(sample_student(network.requires_grad_(False), digit)).argmax(1) == digit
        print(f"{name}, one step: {right.float().mean():.2f} show their digit")


if __name__ == "__main__":
    main()
