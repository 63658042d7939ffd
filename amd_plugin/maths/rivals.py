"""Other people's ways to train a few-step student with a reward, as pure functions; each with its equation and its source.

They are what AMD is compared with, on the same signals and the same rewards (`amd_plugin.objectives.rivals`). What was carried
over from another setting to a few-step student that is distilled is said in each docstring. B samples, then any dimensions.
"""

import torch
from torch import Tensor

from amd_plugin.maths.operators import Transform
from amd_plugin.maths.prediction import NoiseLevel, widen
from amd_plugin.maths.signals import Direction


def transition_log_density(x_next: Tensor, predicted: Tensor, level: NoiseLevel) -> Tensor:
    """``log p(x_next | x_t) = -|x_next - alpha x0|^2 / (2 sigma^2)`` [B] of a stochastic transition, up to a constant.

    A sampler with SDE transitions noises the student's prediction x0 anew, to the level of the next rung. So its transitions
    are Gaussian with a known mean and spread. As in Flow-GRPO (2505.05470), the mean over dimensions stands for the sum.

    Args:
        x_next: input of the next rung [B, ...], as it was drawn; treated as constant.
        predicted: student's prediction x0 at this rung [B, ...], with its graph.
        level: noise level of the next rung, alpha and sigma [B], sigma above 0.

    Example:
        The sample came out above its mean, so the density grows if the prediction does:

        >>> from amd_plugin.maths.prediction import flow
        >>> x0 = torch.zeros(1, 1, requires_grad=True)
        >>> transition_log_density(torch.tensor([[0.5]]), x0, flow(torch.tensor([0.5]))).sum().backward()
        >>> x0.grad
        tensor([[1.]])
    """
    shape = (-1, *[1] * (x_next.dim() - 1))
    alpha, sigma = (part.to(widen(predicted)).reshape(shape) for part in level)
    deviation = (widen(x_next.detach()) - alpha * widen(predicted)) / sigma
    return -0.5 * deviation.square().flatten(1).mean(1)


def policy_loss(log_density: Tensor, advantage: Tensor) -> Tensor:
    """``-a_i log p(transition_i)`` [B], the policy gradient of GRPO (2402.03300) on the student's own transitions.

    RTDMD (2605.26108) splits the gradient of the divergence from a teacher tilted by the reward into that of DMD and ``-beta
    grad E[r]``, and estimates the latter by GRPO on the stochastic transitions. There is one update per batch here, so the
    ratio of new to old policy is 1 and is never clipped.

    Args:
        log_density: log-densities [B] with their graphs.
        advantage: group advantages [B].

    Example:
        >>> policy_loss(torch.tensor([-1.0, -1.0]), torch.tensor([1.0, -1.0]))
        tensor([ 1., -1.])
    """
    return -widen(advantage.detach()).to(log_density) * log_density


def rank_advantage(reward: Tensor, groups: Tensor) -> Tensor:
    """``2 u - 1`` [B] in (-1, 1), u the quantile of a sample's reward within its group; 0 where the reward is NaN or infinite.

    Equal rewards share the middle of their quantiles, so a group of equal rewards has exactly 0 everywhere.

    Args:
        reward: rewards [B], higher is better.
        groups: prompt of each sample [B], as equal numbers for equal prompts.

    Example:
        >>> rank_advantage(torch.tensor([5.0, 1.0, 1.0, 9.0]), torch.tensor([0, 0, 0, 0]))
        tensor([ 0.2500, -0.5000, -0.5000,  0.7500])
    """
    reward = widen(reward.detach())
    valid = torch.isfinite(reward)
    same = (groups[:, None] == groups) & valid
    below = (same & (reward[:, None] > reward)).sum(1) + 0.5 * (same & (reward[:, None] == reward)).sum(1)
    return torch.where(valid, 2 * below / same.sum(1).clamp(min=1) - 1, 0.0).to(reward)


def best_of_k_weights(advantage: Tensor, k: float) -> Tensor:
    """Weights [B] of the fake score's data with which the best of k samples of the teacher is DMD's fixed point; mean 1.

    The best of k has the density ``k F(r)^(k-1) p``, F the distribution function of the reward under the teacher p. Its
    divergence from p is ``log k - (k-1)/k`` nats, whatever the reward (BoNBoN, 2406.00832). A fake score with weights w makes
    ``p / w`` the fixed point, so ``w = 1 / (k F^(k-1))``. Under the best of k itself, the quantile of a reward is ``u = F^k``,
    and the weight is ``w = u^(-(k-1)/k) / k``: it follows from ranks among the student's own samples. Carried over: best-of-k
    distillation trains the student on selected samples; here the selection is in the data of the fake score, in expectation.

    Args:
        advantage: result of `rank_advantage` [B], of the whole batch over all ranks.
        k: number of samples of which the best is taken, at least 1; 1 gives exactly 1 everywhere.

    Example:
        >>> best_of_k_weights(torch.tensor([-0.5, 0.0, 0.5]), k=2.0)
        tensor([1.3132, 0.9286, 0.7582])
        >>> best_of_k_weights(torch.tensor([-0.5, 0.0, 0.5]), k=1.0)
        tensor([1., 1., 1.])
    """
    weights = torch.exp(-(k - 1) / k * torch.log1p(widen(advantage.detach())))
    return weights / weights.mean()


def implicit_policy_loss(
    prediction: Tensor, old: Tensor, x0: Tensor, advantage: Tensor, beta: float = 1.0, *, adaptive: bool = True
) -> Tensor:
    """``r |v+ - x0|^2 + (1 - r) |v- - x0|^2`` over beta [B], DiffusionNFT's loss (2509.16117), in x0 space.

        r = (1 + a) / 2,    v+ = (1 - beta) old + beta v,    v- = (1 + beta) old - beta v

    A network v is trained on samples of the policy `old` so that its implicit positive policy v+ fits what succeeded and the
    implicit negative one v- what failed. Its minimum is ``v = old + E[a (x0 - old) | x_t] / beta``, a step of policy
    improvement: no likelihood, no gradient of the reward. Carried over: there the policy is a denoiser of all noise levels,
    sampled in many steps; here it is the few-step student, from its own samples re-noised to the rung that it is trained at,
    and old is the student itself before the update, since there is one update per batch. At the first rung x_t is (almost) all
    noise, and what is left is a shift of the prediction towards the mean of what succeeded.

    Args:
        prediction: prediction v of x0 from x_t [B, ...], with its graph.
        old: prediction of the policy that the samples are of [B, ...]; treated as constant.
        x0: samples of that policy [B, ...]; treated as constant.
        advantage: advantages a [B] in [-1, 1].
        beta: strength of the implicit policies, above 0.
        adaptive: whether each square is divided by the mean absolute error of its sample, as the authors do.

    Example:
        Where the sample succeeded, the prediction moves towards it:

        >>> v = torch.zeros(1, 1, requires_grad=True)
        >>> implicit_policy_loss(v, v.detach(), torch.ones(1, 1), torch.tensor([1.0]), adaptive=False).sum().backward()
        >>> v.grad
        tensor([[-2.]])
    """
    prediction, old, x0 = widen(prediction), widen(old.detach()), widen(x0.detach())
    success = (1 + widen(advantage.detach()).to(prediction)) / 2

    def error(policy: Tensor) -> Tensor:
        difference = (policy - x0).flatten(1)
        scale = difference.detach().abs().mean(1).clamp(min=1e-5) if adaptive else 1.0
        return difference.square().mean(1) / scale

    positive, negative = (1 - beta) * old + beta * prediction, (1 + beta) * old - beta * prediction
    return (success * error(positive) + (1 - success) * error(negative)) / beta


def normalize_within_groups(centring: float = 0.0, eps: float = 1e-6) -> Transform:
    """Group-normalised distribution matching: the direction in units of its own spread over the samples of a prompt.

        d_i -> (d_i - centring mean_g d) / (rms_g (d - centring mean_g d) + eps)

    GNDM (2603.28460) takes d = real - fake as a reward R_dm and normalises it as GRPO does, where DMD divides by
    ``mean |x0 - d_real|`` of each sample. Its abstract, all that could be read, names group-mean statistics; the form is ours.
    Subtracting the whole mean, as GRPO does, forbids a group to move as one: centring, by default 0, says how much of it is.

    Args:
        centring: share in [0, 1] of the group's mean direction that is subtracted.
        eps: small number added to the spread, in units of x0.

    Raises:
        ValueError: when called on a direction whose signals have no groups.

    Example:
        Both samples of the prompt keep their relative size, and have a mean square of 1:

        >>> from amd_plugin.maths.operators import chain, dmd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(2, 1)
        >>> signals = Signals(x0, torch.tensor([[3.0], [4.0]]), None, fake=x0, groups=torch.tensor([0, 0]))
        >>> chain(dmd(), normalize_within_groups())(signals).total()
        tensor([[0.8485],
                [1.1314]])
    """

    def transform(direction: Direction) -> Direction:
        groups = direction.signals.groups
        if groups is None:
            raise ValueError("Signals.groups: needed to normalise within prompts, got None")
        same = (groups[:, None] == groups).to(direction.match)
        mean = same / same.sum(1, keepdim=True)

        def centred(term: Tensor) -> Tensor:
            return term - centring * (mean @ term.flatten(1)).reshape(term.shape)

        match, guide = centred(direction.match), centred(direction.guide)
        spread = (mean @ (match + guide).flatten(1).square().mean(1)).sqrt()
        scale = direction.signals.per_sample(spread) + eps
        return direction._replace(match=match / scale, guide=guide / scale)

    return transform


def weigh_by_reward(beta: float) -> Transform:
    """``exp(beta a_i)`` times the direction of sample i: Reward Forcing's rewarded loss of DMD, Re-DMD (2512.04678).

    The weight multiplies a direction, so the student is at rest where DMD's is: it learns sooner from what scores well, and at
    convergence there is no tilt. The loss's gradient is the same as that of a loss with the weight.

    Args:
        beta: strength of the weight; 0 changes nothing. `Signals.advantage` is the standardised reward.

    Example:
        >>> from amd_plugin.maths.operators import chain, dmd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(2, 1)
        >>> signals = Signals(x0, x0 + 1, None, fake=x0, advantage=torch.tensor([0.0, 1.0]))
        >>> chain(dmd(), weigh_by_reward(beta=1.0))(signals).total()
        tensor([[1.0000],
                [2.7183]])
    """

    def transform(direction: Direction) -> Direction:
        signals = direction.signals
        if signals.advantage is None or beta == 0:
            return direction
        weight = signals.per_sample(torch.exp(beta * widen(signals.advantage.detach())))
        return direction._replace(match=weight * direction.match, guide=weight * direction.guide)

    return transform


def path_step(x: Tensor, x0: Tensor, level: NoiseLevel, following: NoiseLevel) -> Tensor:
    """The deterministic step of DDIM (2010.02502) from `x` [B, ...] to a lower noise level; Euler's step for flow matching.

    Args:
        x: noised samples [B, ...].
        x0: prediction of the clean samples from them [B, ...].
        level: noise level of `x`, alpha and sigma [B].
        following: noise level of the result.

    Example:
        >>> from amd_plugin.maths.prediction import flow
        >>> path_step(torch.ones(1, 1), torch.zeros(1, 1), flow(torch.tensor([1.0])), flow(torch.tensor([0.75])))
        tensor([[0.7500]])
    """
    alpha, sigma, next_alpha, next_sigma = _shaped(x, *level, *following)
    return next_alpha * x0 + next_sigma / sigma * (x - alpha * x0)


def path_target(start: Tensor, end: Tensor, first: NoiseLevel, last: NoiseLevel) -> Tensor:
    """The x0 [B, ...] that the chord of the teacher's path from `start` to `end` points to: DP-DMD's target (2602.03139).

    There, in flow matching from pure noise: the velocity ``(start - end) / (1 - t)``. In general x0 and a noise e are taken so
    that ``start = alpha x0 + sigma e`` at the first level and ``end = alpha' x0 + sigma' e`` at the last.

    Args:
        start: the student's noise [B, ...].
        end: where the teacher's path is at the last level [B, ...].
        first, last: noise levels of the two, alpha and sigma [B].

    Example:
        A quarter of the way to 4:

        >>> from amd_plugin.maths.prediction import flow
        >>> path_target(torch.zeros(1, 1), torch.ones(1, 1), flow(torch.tensor([1.0])), flow(torch.tensor([0.75])))
        tensor([[4.]])
    """
    alpha, sigma, last_alpha, last_sigma = _shaped(start, *first, *last)
    return (sigma * widen(end) - last_sigma * widen(start)) / (last_alpha * sigma - alpha * last_sigma)


def _shaped(x: Tensor, *values: Tensor) -> list[Tensor]:
    """`values` [B] each, shaped to multiply x [B, ...]."""
    return [value.to(widen(x)).reshape(-1, *[1] * (x.dim() - 1)) for value in values]
