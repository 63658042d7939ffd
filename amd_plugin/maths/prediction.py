"""From a network's output to clean data, for every noise schedule in use.

Every schedule is ``x_t = alpha x0 + sigma eps`` with its own pair (alpha, sigma): variance preserving has
alpha^2 + sigma^2 = 1, EDM has alpha = 1, flow matching has alpha + sigma = 1. One formula per prediction type then
serves all three. In this file `sigma` is that noise coefficient; elsewhere it is a fraction of the schedule, see
`amd_plugin.maths.signals`. Shapes: B samples, then any trailing dimensions.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "flow_prediction", "sample"]


class NoiseLevel(NamedTuple):
    """The pair (alpha, sigma) of ``x_t = alpha x0 + sigma eps``. Both [B], alpha in [0, 1], sigma >= 0."""

    alpha: Tensor
    sigma: Tensor

    def add_noise(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The noised samples x_t [B, ...] of clean `x0` [B, ...] and `noise` [B, ...].

        Example:
            A quarter of the way to pure noise, on a flow-matching schedule:

            >>> flow(torch.tensor([0.25])).add_noise(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
            tensor([[3., 1.]])
        """
        return _like(self.alpha, x0) * x0 + _like(self.sigma, x0) * noise


def variance_preserving(alphas_cumprod: Tensor, timestep: Tensor) -> NoiseLevel:
    """The level of discrete `timestep` [B] (integers) of a DDPM-like schedule with `alphas_cumprod` [T] in (0, 1).

    Example:
        >>> level = variance_preserving(torch.tensor([0.96, 0.64, 0.36]), torch.tensor([1, 2]))
        >>> level.alpha, level.sigma
        (tensor([0.8000, 0.6000]), tensor([0.6000, 0.8000]))
    """
    alpha_squared = alphas_cumprod.to(timestep.device)[timestep.long()]
    return NoiseLevel(alpha_squared.sqrt(), (1 - alpha_squared).sqrt())


def edm(sigma: Tensor) -> NoiseLevel:
    """The level ``x_t = x0 + sigma eps`` of Karras et al. (2206.00364); `sigma` [B] > 0.

    Example:
        >>> edm(torch.tensor([80.0]))
        NoiseLevel(alpha=tensor([1.]), sigma=tensor([80.]))
    """
    return NoiseLevel(torch.ones_like(sigma), sigma)


def flow(sigma: Tensor) -> NoiseLevel:
    """The level ``x_t = (1 - sigma) x0 + sigma eps`` of flow matching; `sigma` [B] in [0, 1].

    Example:
        >>> flow(torch.tensor([0.25]))
        NoiseLevel(alpha=tensor([0.7500]), sigma=tensor([0.2500]))
    """
    return NoiseLevel(1 - sigma, sigma)


def to_x0(prediction_type: Prediction, output: Tensor, x_t: Tensor, level: NoiseLevel) -> Tensor:
    """Clean data [B, ...] implied by a network's `output` [B, ...] at `x_t` [B, ...], in fp32 or wider.

    ``epsilon`` is the noise; ``v_prediction`` is (alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2), which is the usual v
    where the schedule preserves variance and diffusers' convention where it does not; ``flow_prediction`` is eps - x0;
    ``sample`` is x0 itself. The names are those of diffusers' schedulers.

    Raises:
        ValueError: for another `prediction_type`.

    Example:
        A network that predicts the noise exactly implies the clean sample exactly:

        >>> x0, noise, level = torch.tensor([[2.0]]), torch.tensor([[1.0]]), edm(torch.tensor([3.0]))
        >>> to_x0("epsilon", noise, level.add_noise(x0, noise), level)
        tensor([[2.]])
    """
    output, x_t = widen(output), widen(x_t)
    alpha, sigma = _like(level.alpha, x_t), _like(level.sigma, x_t)
    if prediction_type == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction_type == "v_prediction":
        power = alpha**2 + sigma**2
        return (alpha * x_t - sigma * power.sqrt() * output) / power
    if prediction_type == "flow_prediction":
        return (x_t - sigma * output) / (alpha + sigma)
    if prediction_type == "sample":
        return output
    raise ValueError(f"prediction_type: one of epsilon, v_prediction, flow_prediction, sample, got {prediction_type!r}")


def training_target(prediction_type: Prediction, x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """The output a network of `prediction_type` is trained towards, for clean `x0` and `noise`, all [B, ...].

    It is the inverse of `to_x0`.

    Raises:
        ValueError: for another `prediction_type`.

    Example:
        >>> x0, noise, level = torch.tensor([[2.0]]), torch.tensor([[1.0]]), flow(torch.tensor([0.5]))
        >>> target = training_target("flow_prediction", x0, noise, level)
        >>> target, to_x0("flow_prediction", target, level.add_noise(x0, noise), level)
        (tensor([[-1.]]), tensor([[2.]]))
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        alpha, sigma = _like(level.alpha, x0), _like(level.sigma, x0)
        return (alpha * noise - sigma * x0) / (alpha**2 + sigma**2).sqrt()
    if prediction_type == "flow_prediction":
        return noise - x0
    if prediction_type == "sample":
        return x0
    raise ValueError(f"prediction_type: one of epsilon, v_prediction, flow_prediction, sample, got {prediction_type!r}")


def widen(x: Tensor) -> Tensor:
    """`x` in fp32 if it is half precision, unchanged otherwise: differences of near-equal predictions vanish in bf16.

    Example:
        >>> widen(torch.zeros(1, dtype=torch.bfloat16)).dtype, widen(torch.zeros(1, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _like(per_sample: Tensor, x: Tensor) -> Tensor:
    """`per_sample` [B], shaped to multiply x [B, ...]."""
    return per_sample.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
