"""The algebra of operators, on random tensors of random shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin import Signals, matching_loss
from amd_plugin.maths import operators
from amd_plugin.maths.operators import chain

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
scales = st.floats(0, 8)
strengths = st.floats(0, 0.95)


def signals(batch, shape, seed, advantage=None, **options):
    draws = torch.Generator().manual_seed(seed)
    x0, cond, uncond, fake = (torch.randn(batch, *shape, generator=draws) for _ in range(4))
    return Signals(x0, cond, uncond, fake, torch.rand(batch, generator=draws), advantage, **options)


def random_advantage(batch, seed):
    return 2 * torch.rand(batch, generator=torch.Generator().manual_seed(seed + 1)) - 1


@given(st.integers(1, 6), shapes, scales, st.integers(0, 999))
def test_dmd_is_guided_teacher_minus_fake(batch, shape, w, seed):
    s = signals(batch, shape, seed)
    guided = s.real_uncond + w * (s.real_cond - s.real_uncond)
    torch.testing.assert_close(operators.dmd(w)(s).total(), guided - s.fake, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 6), shapes, scales, st.integers(0, 999))
def test_dmd2s_loss_written_independently(batch, shape, w, seed):
    """DMD2 (2405.14867): the gradient is (fake - guided) / mean |x0 - guided| per sample, the loss 0.5 mse to x0 - gradient."""
    s = signals(batch, shape, seed)
    guided = (s.real_uncond + w * (s.real_cond - s.real_uncond)).double()
    x = s.x0.double().requires_grad_()
    dims = tuple(range(1, x.dim()))
    gradient = (s.fake.double() - guided) / ((x - guided).abs().mean(dim=dims, keepdim=True) + 1e-6)
    reference = 0.5 * torch.nn.functional.mse_loss(x, (x - gradient).detach())
    direction = chain(operators.dmd(w), operators.normalize())(s)
    torch.testing.assert_close(matching_loss(s.x0, direction.total()).double(), reference.detach(), rtol=1e-3, atol=1e-3)


@given(st.integers(1, 6), shapes, scales, strengths, st.sampled_from(["both", "negative"]), st.integers(0, 999))
def test_amd_without_spread_is_dmd_to_the_bit(batch, shape, w, s, side, seed):
    for advantage in (None, torch.zeros(batch)):
        given_signals = signals(batch, shape, seed, advantage)
        assert torch.equal(operators.amd(w, s, side)(given_signals).total(), operators.dmd(w)(given_signals).total())


@given(st.integers(1, 6), shapes, scales, st.integers(0, 999))
def test_amd_of_strength_zero_is_dmd_to_the_bit(batch, shape, w, seed):
    s = signals(batch, shape, seed, random_advantage(batch, seed))
    for side in ("both", "negative"):
        assert torch.equal(operators.amd(w, 0.0, side)(s).total(), operators.dmd(w)(s).total())


@given(st.integers(1, 6), shapes, scales, strengths, st.integers(0, 999))
def test_equation_10(batch, shape, w, s, seed):
    a = random_advantage(batch, seed)
    x = signals(batch, shape, seed, a)
    column = a.reshape(-1, *[1] * len(shape))
    expected = (1 - s * column) * (x.real_cond - x.fake) + (1 + s * column) * (w - 1) * (x.real_cond - x.real_uncond)
    torch.testing.assert_close(operators.amd(w, s, "both")(x).total(), expected, rtol=1e-4, atol=1e-4)


@given(st.integers(2, 6), shapes, scales, strengths, st.integers(0, 999))
def test_the_negative_side_leaves_good_samples_alone(batch, shape, w, s, seed):
    a = random_advantage(batch, seed)
    x = signals(batch, shape, seed, a)
    amd, dmd = operators.amd(w, s, "negative")(x), operators.dmd(w)(x)
    good = a >= 0
    assert torch.equal(amd.total()[good], dmd.total()[good])
    assert (amd.match[~good].abs() >= dmd.match[~good].abs()).all()
    assert (amd.guide[~good].abs() <= dmd.guide[~good].abs()).all()


@given(st.integers(1, 6), shapes, scales, strengths, st.integers(0, 999), st.randoms())
def test_permuting_the_batch_permutes_everything(batch, shape, w, s, seed, random):
    order = list(range(batch))
    random.shuffle(order)
    x = signals(batch, shape, seed, random_advantage(batch, seed))
    shuffled = Signals(*[None if t is None else t[order] for t in x])
    op = chain(operators.amd(w, s, "both"), operators.normalize())
    torch.testing.assert_close(op(shuffled).total(), op(x).total()[order])


@given(st.integers(1, 4), shapes, st.integers(0, 999))
def test_chain_of_nothing_is_the_identity(batch, shape, seed):
    s = signals(batch, shape, seed)
    assert chain()(s) is s
    direction = operators.dmd(2.0)(s)
    assert chain()(direction) is direction
    assert torch.equal(chain(operators.dmd(2.0), chain())(s).total(), direction.total())


@given(st.integers(1, 6), shapes, st.integers(0, 999))
def test_the_surrogates_gradient_is_minus_the_direction(batch, shape, seed):
    s = signals(batch, shape, seed)
    x0 = s.x0.clone().requires_grad_()
    direction = chain(operators.dmd(3.0), operators.normalize())(s._replace(x0=x0)).total()
    matching_loss(x0, direction).backward()
    torch.testing.assert_close(x0.grad * x0.numel(), -direction, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 6), shapes, scales, strengths, st.integers(0, 999))
def test_the_normaliser_never_looks_at_advantages(batch, shape, w, s, seed):
    x = signals(batch, shape, seed, random_advantage(batch, seed))
    for kind in ("per_sample", "global"):
        raw, scaled = operators.amd(w, s, "both")(x), chain(operators.amd(w, s, "both"), operators.normalize(kind))(x)
        plain, plain_scaled = operators.dmd(w)(x), chain(operators.dmd(w), operators.normalize(kind))(x)
        torch.testing.assert_close(scaled.match * plain.match, plain_scaled.match * raw.match, rtol=1e-3, atol=1e-3)


@given(st.integers(1, 6), shapes, scales, st.integers(0, 999))
def test_decoupled_dmd_with_one_level_is_dmd(batch, shape, w, seed):
    s = signals(batch, shape, seed)
    twice = s._replace(guide_cond=s.real_cond, guide_uncond=s.real_uncond)
    expected = operators.dmd(w)(s).total()
    assert torch.equal(operators.decoupled_dmd(w)(s).total(), expected)
    assert torch.equal(operators.decoupled_dmd(w)(twice).total(), expected)


def test_decoupled_dmd_takes_guidance_from_its_own_level():
    s, other = signals(3, (2, 2), 0), signals(3, (2, 2), 1)
    direction = operators.decoupled_dmd(3.0)(s._replace(guide_cond=other.real_cond, guide_uncond=other.real_uncond))
    torch.testing.assert_close(direction.match, s.real_cond - s.fake)
    torch.testing.assert_close(direction.guide, 2 * (other.real_cond - other.real_uncond))


def test_windows_keep_a_term_only_inside():
    s = signals(3, (2,), 0)._replace(sigma=torch.tensor([0.1, 0.5, 0.9]))
    direction = operators.decoupled_dmd(3.0, match_window=(0.4, 1.0), guide_window=(0.0, 0.5))(s)
    assert (direction.match != 0).any(1).tolist() == [False, True, True]
    assert (direction.guide != 0).any(1).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="sigma"):
        operators.decoupled_dmd(3.0, match_window=(0.4, 1.0))(s._replace(sigma=None))


def test_static_weights():
    s = signals(3, (2,), 0)
    weighed, plain = chain(operators.dmd(3.0), operators.weigh(match=1.2, guide=0.5))(s), operators.dmd(3.0)(s)
    assert torch.equal(weighed.total(), 1.2 * plain.match + 0.5 * plain.guide)


@given(st.sampled_from([torch.bfloat16, torch.float16]), shapes, st.integers(0, 999))
def test_half_precision_is_combined_in_fp32(dtype, shape, seed):
    half = Signals(*[None if t is None else t.to(dtype) for t in signals(3, shape, seed)])
    wide = Signals(*[None if t is None else t.float() for t in half])
    op = chain(operators.amd(4.0, 0.5, "both"), operators.normalize())
    assert op(half).total().dtype is torch.float32
    assert torch.equal(op(half).total(), op(wide).total())
    assert matching_loss(half.x0, op(half).total()).dtype is torch.float32


def test_fp64_stays_fp64():
    wide = Signals(*[None if t is None else t.double() for t in signals(3, (2,), 0, torch.rand(3))])
    assert chain(operators.amd(4.0, 0.5, "both"), operators.normalize())(wide).total().dtype is torch.float64


def test_no_gradient_flows_through_a_direction():
    s = Signals(*[None if t is None else t.requires_grad_() for t in signals(3, (2,), 0)])
    assert not chain(operators.amd(4.0, 0.5), operators.normalize())(s).total().requires_grad


def test_without_uncond_there_is_no_guidance():
    s = signals(3, (2,), 0)._replace(real_uncond=None)
    assert torch.equal(operators.dmd(1.0)(s).total(), s.real_cond - s.fake)
    assert not operators.dmd(1.0)(s).guide.any()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: operators.amd(1.0, 1.0), "strength"), (lambda: operators.amd(1.0, -0.1), "strength"),
        (lambda: operators.amd(1.0, 0.5, "left"), "side"), (lambda: operators.normalize("batch"), "normalizer"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(build, name):
    with pytest.raises(ValueError, match=name):
        build()
