"""The two losses of distribution matching. Both in fp32 or wider, whatever comes in; B samples, then any dimensions."""

from torch import Tensor

from amd_plugin.maths.prediction import widen


def matching_loss(x0: Tensor, direction: Tensor) -> Tensor:
    """The surrogate ``0.5 mean (x0 - sg(x0 + direction))^2``, whose gradient on x0 is -direction / x0.numel().

    Args:
        x0: student samples [B, ...], with grad.
        direction: where they should move [B, ...], already normalised; treated as constant.

    Returns:
        Scalar. See `matching_loss_per_sample` for [B].
    """
    return matching_loss_per_sample(x0, direction).mean()


def matching_loss_per_sample(x0: Tensor, direction: Tensor) -> Tensor:
    """`matching_loss` of each sample [B]; their mean is the loss."""
    if direction.shape != x0.shape:
        raise ValueError(f"direction: must have x0's shape {tuple(x0.shape)}, got {tuple(direction.shape)}")
    x0 = widen(x0)
    target = (x0 + widen(direction)).detach()
    return 0.5 * ((x0 - target) ** 2).reshape(len(x0), -1).mean(1)


def fake_score_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Denoising loss of the fake score on student samples, weighted per sample (section 3.3).

    Args:
        prediction: the network's output [B, ...], in its own prediction type, with grad.
        target: what it should have been [B, ...], see `amd_plugin.maths.prediction.training_target`.
        weight: [B], mean 1; None is 1 everywhere.

    Returns:
        Scalar. See `fake_score_loss_per_sample` for [B].
    """
    return fake_score_loss_per_sample(prediction, target, weight).mean()


def fake_score_loss_per_sample(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """`fake_score_loss` of each sample [B], weight included; their mean is the loss."""
    error = ((widen(prediction) - widen(target.detach())) ** 2).reshape(len(prediction), -1).mean(1)
    return error if weight is None else weight.detach().to(error) * error
