"""The fixed point of DMD with a weighted fake score is q* = (p_teacher / w) / Z: in closed form, and where a student ends up."""

import pytest
import torch
from torch.distributions import Normal

from amd_plugin import Signals, sharpening_weights
from amd_plugin.maths import operators
from amd_plugin.maths.sharpening import implied_tilt

MEANS, MASSES, STD = torch.tensor([-2.0, 0.0, 2.0]).double(), torch.tensor([0.30, 0.45, 0.25]).double(), 0.3
GOOD = torch.tensor([1.0, -1.0, -1.0]).double()  # the advantage in each mode: constant there, so modes keep their shape


def weights(advantage, sharpening, kind):
    return sharpening_weights(advantage, sharpening, kind).double()


def denoiser(x_t, t, masses):
    """E[x | x_t] of the mixture with these masses; [N] from [N]."""
    variance = ((1 - t) * STD) ** 2 + t**2
    residual = x_t[:, None] - (1 - t) * MEANS
    responsibility = (masses.log() - residual.square() / (2 * variance)).softmax(1)
    return (responsibility * (MEANS + (1 - t) * STD**2 / variance * residual)).sum(1)


@pytest.mark.parametrize(
    ("sharpening", "kind"), [(0.25, "linear"), (0.5, "linear"), (0.9, "linear"), (0.5, "exponential"), (1.5, "exponential")]
)
def test_the_direction_vanishes_at_the_law_and_only_there(sharpening, kind):
    w = weights(GOOD, sharpening, kind)
    law = MASSES / w / (MASSES / w).sum()
    x_t = torch.linspace(-4, 4, 121).double()
    largest = {}
    for name, q in (("law", law), ("teacher", MASSES)):
        fake_masses = q * w / (q * w).sum()  # what a fake score trained on q with weights w denoises
        moves = []
        for t in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95):
            real, fake = denoiser(x_t, t, MASSES), denoiser(x_t, t, fake_masses)
            direction = operators.dmd(1.0)(Signals(x_t[:, None], real[:, None], None, fake[:, None]))
            moves.append(direction.total().abs().max())
        largest[name] = torch.stack(moves).max()
    assert largest["law"] < 1e-10
    assert largest["teacher"] > 0.05


@pytest.mark.parametrize(("sharpening", "kind"), [(0.5, "linear"), (1.0, "exponential")])
def test_particles_end_with_the_mass_of_the_law(sharpening, kind):
    """A student of particles, moved by the exact teacher and the exact weighted denoiser of itself."""
    count, draws = 250, torch.Generator().manual_seed(0)
    x = 1.5 * Normal(0.0, 1.0).icdf((torch.arange(count) + 0.5) / count).double()
    for rate in [1.0] * 105 + [0.3] * 45:
        w = weights(torch.where(x < -1, 1.0, -1.0), sharpening, kind)
        quantiles = (torch.arange(12) + torch.rand((), generator=draws)) / 12
        noise, step = Normal(0.0, 1.0).icdf(quantiles.clamp(1e-3, 1 - 1e-3)).double(), torch.zeros_like(x)
        for t in (0.3, 0.6, 0.85):
            x_t = ((1 - t) * x[:, None] + t * noise).reshape(-1)
            log_weights = (w.log() - (x_t[:, None] - (1 - t) * x).square() / (2 * t**2)).float()
            fake = (log_weights.softmax(1) @ x.float()).double()
            signals = Signals(x_t[:, None], denoiser(x_t, t, MASSES)[:, None], None, fake[:, None])
            step += operators.dmd(1.0)(signals).total().reshape(count, -1).mean(1)
        x = x + rate * step / 3
    w = weights(GOOD, sharpening, kind)
    law = MASSES / w / (MASSES / w).sum()
    assert (x < -1).double().mean().item() == pytest.approx(law[0].item(), abs=0.01)


def test_the_implied_tilt_is_that_of_the_law():
    a = torch.tensor([-1.0, -0.5, 0.0, 1.0])
    ratio, divergence = implied_tilt(a, 1.0, "exponential")
    assert ratio.item() == pytest.approx(torch.tensor(2.0).exp().item(), rel=1e-5)
    tilted = a.exp() / a.exp().sum()
    assert divergence.item() == pytest.approx((tilted * (tilted * len(a)).log()).sum().item(), rel=1e-5)
    assert implied_tilt(a, 0.0)[0] == 1 and implied_tilt(a, 0.0)[1] == 0
    assert torch.isinf(implied_tilt(a, 1.0, "linear")[0])
