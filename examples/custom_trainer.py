"""A trainer of one's own with AMD in it: handwritten digits, one step instead of many, in seconds on a CPU.

    python examples/custom_trainer.py                                   # AMD
    python examples/custom_trainer.py --objective dmd                   # the baseline
    python examples/custom_trainer.py --amd.strength 0.3 --amd.side both

All that is specific to this package is marked with (1) to (5). The rest is any distillation loop: a teacher, a student, a
fake score that follows the student, two optimizers.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from amd_plugin import NoiseLevel, Signals, to_x0
from amd_plugin.adapters import shim
from amd_plugin.errors import AmdPluginError

CLASSES, PIXELS, GUIDANCE = 10, 64, 1.5


class Denoiser(nn.Module):
    """Predicts the flow eps - x0 from x_t, its noise level and a digit; the last class is "no digit"."""

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
        loss = (teacher(noised(x0, noise, t), t, digit) - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


def train_reward(images: torch.Tensor, digits: torch.Tensor) -> nn.Module:
    """How clearly a picture shows its digit: the log-probability of a small classifier."""
    classifier = nn.Sequential(nn.Linear(PIXELS, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(200):
        loss = nn.functional.cross_entropy(classifier(images), digits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier.requires_grad_(False)


def sample_student(student: nn.Module, digit: torch.Tensor) -> torch.Tensor:
    """One step from noise."""
    return clean(student, torch.randn(len(digit), PIXELS), torch.ones(len(digit)), digit)


def distil(objective, teacher: nn.Module, reward: nn.Module, steps: int, groups: int, group_size: int) -> nn.Module:
    student, fake = Denoiser(), Denoiser()
    student.load_state_dict(teacher.state_dict())
    fake.load_state_dict(teacher.state_dict())
    students = torch.optim.Adam(student.parameters(), lr=2e-4, betas=(0.0, 0.99))
    fakes = torch.optim.Adam(fake.parameters(), lr=4e-4, betas=(0.0, 0.99))

    def judged():
        """Student samples in groups that share their digit, and how each did within its group."""
        digit = torch.randint(CLASSES, (groups,)).repeat_interleave(group_size)
        x0 = sample_student(student, digit)
        with torch.no_grad():
            score = reward(x0).log_softmax(1).gather(1, digit[:, None])[:, 0]
        return x0, digit, objective.advantage(score, digit)  # (3) rewards to advantages

    for step in range(steps):
        for _ in range(4):
            x0, digit, advantage = judged()
            x0, noise, t = x0.detach(), torch.randn_like(x0), torch.rand(len(x0))
            weight = objective.sharpening_weights(advantage)
            prediction = fake(noised(x0, noise, t), t, digit)
            loss = objective.fake_score_loss(prediction, noise - x0, weight).loss  # (4) the fake score's loss
            fakes.zero_grad()
            loss.backward()
            fakes.step()
        x0, digit, advantage = judged()
        t = 0.02 + 0.96 * torch.rand(len(x0))
        with torch.no_grad():
            x_t = noised(x0, torch.randn_like(x0), t)
            cond, uncond = clean(teacher, x_t, t, digit), clean(teacher, x_t, t, torch.full_like(digit, CLASSES))
            predicted = clean(fake, x_t, t, digit)
        output = objective.student_loss(Signals(x0, cond, uncond, predicted, t, advantage))  # (5) the student's loss
        students.zero_grad()
        output.loss.backward()
        students.step()
        if step % 50 == 0:
            print(f"step {step:4d}  loss {output.loss:.4f}")
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--groups", type=int, default=16, help="prompts per batch")
    parser.add_argument("--group-size", type=int, default=4, help="samples per prompt")
    shim.add_arguments(parser)  # (1) --objective and its options
    args = parser.parse_args()
    try:
        objective = shim.make_objective(args, guidance_scale=GUIDANCE)  # (2) the objective
    except AmdPluginError as error:
        parser.error(str(error))
    torch.manual_seed(0)
    images, digits = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    images = images.float() / 8 - 1
    teacher = train_teacher(images, digits, args.teacher_steps)
    student = distil(objective, teacher, train_reward(images, digits), args.steps, args.groups, args.group_size)
    torch.manual_seed(1)
    judge = train_reward(images, digits)  # another classifier than the one that was trained on
    digit = torch.arange(CLASSES).repeat_interleave(100)
    for name, network in (("teacher", teacher), ("student", student)):
        with torch.no_grad():
            right = judge(sample_student(network, digit)).argmax(1) == digit
        print(f"{name}, one step: {right.float().mean():.2f} show their digit")


if __name__ == "__main__":
    main()
