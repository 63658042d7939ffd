"""The two losses of distribution matching. Both in fp32 or wider, whatever comes in; B samples, then any dimensions."""

from typing import NamedTuple

from torch import Tensor

from amd_plugin.maths.prediction import widen


class LossOutput(NamedTuple):
    """The loss of one turn, of the student or of the fake score.

    Attributes:
        loss: scalar loss, with grad; the mean of `per_sample`.
        per_sample: loss of each sample [B], detached.
        metrics: values to log by name, 0-dim tensors, detached. Reading one synchronises the device, so do it on logging steps.
    """

    loss: Tensor
    per_sample: Tensor
    metrics: dict[str, Tensor]


def matching_loss(x0: Tensor, direction: Tensor) -> Tensor:
    """The surrogate ``0.5 mean (x0 - sg(x0 + direction))^2``, whose gradient on x0 is -direction / x0.numel().

    Args:
        x0: student samples [B, ...], with grad.
        direction: where they should move [B, ...], already normalised; treated as constant.

    Returns:
        Scalar. See `matching_loss_per_sample` for [B].

    Example:
        >>> import torch
        >>> x0 = torch.zeros(1, 2, requires_grad=True)
        >>> matching_loss(x0, torch.tensor([[2.0, -4.0]])).backward()
        >>> x0.grad
        tensor([[-1.,  2.]])
    """
    return matching_loss_per_sample(x0, direction).mean()


def matching_loss_per_sample(x0: Tensor, direction: Tensor) -> Tensor:
    """`matching_loss` of each sample [B]; their mean is the loss.

    Raises:
        ValueError: where the shapes differ.

    Example:
        >>> import torch
        >>> matching_loss_per_sample(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
        tensor([0.5000, 2.0000])
    """
    if direction.shape != x0.shape:
        raise ValueError(f"direction: must have x0's shape {tuple(x0.shape)}, got {tuple(direction.shape)}")
    x0 = widen(x0)
    target = (x0 + widen(direction)).detach()
    return 0.5 * ((x0 - target) ** 2).reshape(len(x0), -1).mean(1)


def fake_score_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Denoising loss of the fake score on student samples, weighted per sample (2602.07345, section 3.3).

    Args:
        prediction: network output [B, ...], in the network's own prediction type, with grad.
        target: wanted output [B, ...], see `amd_plugin.maths.prediction.training_target`.
        weight: weight of each sample [B], mean 1; None is 1 everywhere.

    Returns:
        Scalar. See `fake_score_loss_per_sample` for [B].

    Example:
        >>> import torch
        >>> fake_score_loss(torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1))
        tensor(5.)
    """
    return fake_score_loss_per_sample(prediction, target, weight).mean()


def fake_score_loss_per_sample(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """`fake_score_loss` of each sample [B], weight included; their mean is the loss.

    Args:
        prediction: network output [B, ...], in the network's own prediction type, with grad.
        target: wanted output [B, ...], of the same shape.
        weight: weight of each sample [B], at least 0, mean 1; None is 1 everywhere.

    Returns:
        [B], fp32 or wider, with grad.

    Example:
        A failing sample counts more, so the fake score fits it better and the student is pushed away from it:

        >>> import torch
        >>> fake_score_loss_per_sample(torch.ones(2, 1), torch.zeros(2, 1), weight=torch.tensor([1.5, 0.5]))
        tensor([1.5000, 0.5000])
    """
    error = ((widen(prediction) - widen(target.detach())) ** 2).reshape(len(prediction), -1).mean(1)
    return error if weight is None else weight.detach().to(error) * error
