"""The options of AMD with their places in the paper, and the values that `auto` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from amd_plugin.errors import OptionError
from amd_plugin.maths.operators import Side
from amd_plugin.maths.sharpening import LARGEST, Kind
from amd_plugin.objectives.dmd_options import DMDOptions, NonNegative, Window, check_dmd, check_windows
from amd_plugin.objectives.kl_budget import REACH
from amd_plugin.options import Removed, metadata, option

Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, lt=1)]

TOLERANCE = 0.5  # of a unit: one logit, where rewards are logits
CERTAIN = 0.25  # of the spread, for advantage guidance alone: outcomes are nearly certain, which learns the contrast fastest
LOW_NOISE: tuple[float, float] = (0.0, 0.5)


class AMDOptions(DMDOptions):
    """Options of `amd`: those of DMD, and Adaptive Matching Distillation's own (2602.07345)."""

    # Dynamic Score Adaptation, Eq. 12-13
    strength: Share | Auto = option(
        "auto", "Adaptation strength s in [0, 1); 0 turns adaptation off; auto: 0.5 if guidance is 2 or more at all noise "
        "levels, else 0.", paper=0.5,
    )  # fmt: skip
    # Repulsive Landscape Sharpening, section 3.3
    sharpening: Annotated[float, Field(ge=0, le=LARGEST)] = option(
        1.0, "Sharpening lambda, at most 1 for the linear kind; 0 turns sharpening off.", paper=1.0
    )
    # Advantage guidance, our own
    advantage_guidance: NonNegative | Auto = option(
        0.0, "Advantage guidance gamma, the scale at which failing samples follow the fake score's contrast between success "
        "and failure; 0 turns it off; auto: follows from what is measured, where the host offers outcomes.", paper=0.0,
        needs="fake_score_outcome",
    )  # fmt: skip
    advantage_gradient: NonNegative | Auto = option(
        0.0, "Length of a differentiable reward's gradient at failing samples, beside that of matching; 0 leaves it out; auto: "
        "0.3 in the reference host if all rewards that count are differentiable, else 0.",
        group="regime", paper=0.0, needs="reward_gradient",
    )  # fmt: skip
    kl: NonNegative | None = option(
        None, "Budget of divergence from the teacher in nats, from which the sharpening lambda and an automatic scale of "
        "advantage guidance follow, with rewards in their own running spread; null: lambda is as given.",
        group="regime", paper=None,
    )  # fmt: skip
    side: Side | Auto = option(
        "auto", "Samples that adaptation weighs; negative: failing ones; guidance_only: failing ones, in the guidance term "
        "only; both: all; auto: negative above guidance scale 1, else both.", group="regime", paper="both",
    )  # fmt: skip
    sharpening_sigma: Window | Auto | None = option(
        "auto", "Noise levels [low, high] at which the fake score's loss is weighted, null for all; auto: all if rewards have "
        "a unit, with kl, if guidance is 2 or more at all levels, or if the host gives no levels; else the lower half of the "
        "schedule.",
        group="regime", paper=None, needs="fake_score_noise_level",
    )  # fmt: skip
    unit: NonNegative | Auto = option(
        "auto", "Reward difference that counts as significant, a divisor of rewards in place of their spread; 0: the spread; "
        "auto: three running spreads with kl, a quarter of one for advantage guidance without sharpening; else the reward's "
        "own unit, but 0 if guidance is 2 or more at all levels.", group="regime", paper=0.0,
    )  # fmt: skip
    tolerance: NonNegative | Auto = option(
        "auto", "Reward difference that counts as none, in units or spreads; larger ones count by their excess; auto: 0.5 with "
        "a unit, else 0; 0 with kl, and for advantage guidance without sharpening.", group="regime", paper=0.0,
    )  # fmt: skip
    sharpening_kind: Kind = option(
        "exponential", "Form of the sharpening weights: exponential, the exact reward tilt, or linear.",
        group="paper", paper="linear",
    )  # fmt: skip
    std_floor: NonNegative = option(
        0.1, "Smallest spread to divide rewards without a unit by, as a share of its running mean.",
        group="paper", paper=0.0,
    )  # fmt: skip
    static: bool = option(False, "Control: every sample gets the batch's mean alpha and beta.", group="expert", paper=False)
    memory_share: Share = option(
        0.0, "Share of the fake score's samples that come from a memory of failures.", group="expert", paper=0.0,
        needs="replay",
    )  # fmt: skip

    REMOVED: ClassVar[Mapping[str, Removed]] = {
        "baseline": Removed("group", "samples are always compared within their prompt; set train.group_size to 4 or more"),
        "scale": Removed("group", "rewards are divided by objective.unit, or by the spread of their group if that is 0"),
        "squash": Removed("clip", "advantages are always clipped to [-1, 1]"),
        "limit": Removed(1.0, "advantages are always clipped to [-1, 1]; a larger objective.unit makes them smaller"),
        "coherence_gate": Removed(False, "the agreement that it depended on is logged as objective/coherence_zone"),
        "memory_size": Removed(384, "the memory keeps the 384 latest failures of every rung"),
        "zone": Removed(-0.5, "a sample with an advantage of -0.5 or less counts as lying in a zone"),
    }

    ADDED: ClassVar[Mapping[str, Any]] = {"advantage_gradient": 0.0}

    @classmethod
    def paper(cls) -> dict[str, Any]:
        """Values of AMD's own options in the paper's form, by name."""
        declarations = {name: metadata(field) for name, field in cls.model_fields.items()}
        return {name: declaration["paper"] for name, declaration in declarations.items() if "paper" in declaration}


def check_amd(options: AMDOptions) -> None:
    """Raises OptionError for options that exclude each other, or values out of range."""
    check_dmd(options)
    check_windows(options, "sharpening_sigma")
    if options.sharpening_kind == "linear" and options.sharpening > 1:
        message = "must be in [0, 1] for the linear kind, whose weights would turn negative"
        raise OptionError("sharpening", f"{message}, got {options.sharpening}")
    if options.kl is not None and options.sharpening_kind == "linear":
        raise OptionError("kl", f"needs sharpening_kind 'exponential', which is the tilt that it measures, got {options.kl}")


def overshoots(options: DMDOptions) -> bool:
    """Whether the guidance scale is 2 or more at all noise levels, which harms every sample."""
    windows = (options.guidance_sigma, options.guidance_window)
    everywhere = all(window is None or (window[0] <= 0.02 and window[1] >= 0.98) for window in windows)
    return options.guidance_scale >= 2 and everywhere


def resolved_strength(options: AMDOptions) -> float:
    """Adaptation strength s."""
    if options.strength == "auto":
        return 0.5 if overshoots(options) else 0.0
    return options.strength


def resolved_side(options: AMDOptions) -> Side:
    """Samples that adaptation weighs."""
    if options.side == "auto":
        return "negative" if options.guidance_scale > 1 else "both"
    return options.side


def unit_in_spreads(options: AMDOptions) -> float:
    """The automatic unit in running spreads of rewards; 0 where it does not follow from them."""
    if options.kl is not None:
        return REACH
    only_guides = options.advantage_guidance != 0 and options.sharpening == 0
    return CERTAIN if only_guides else 0.0


def resolved_unit(options: AMDOptions, reward_unit: float, spread: float = 0.0) -> float:
    """Divisor of rewards with unit `reward_unit` and running spread `spread`; 0 stands for the spread of their group."""
    if options.unit != "auto":
        return options.unit
    if share := unit_in_spreads(options):
        return share * spread
    return 0.0 if overshoots(options) else reward_unit


def resolved_tolerance(options: AMDOptions, unit: float) -> float:
    """Reward difference that counts as none, in units, or in spreads if `unit` is 0."""
    if options.tolerance == "auto":
        return TOLERANCE if unit and not unit_in_spreads(options) else 0.0
    return options.tolerance


def resolved_sharpening_sigma(options: AMDOptions, unit: float) -> tuple[float, float] | None:
    """Noise levels at which the fake score's loss is weighted; None stands for all."""
    if options.sharpening_sigma == "auto":
        return None if overshoots(options) or unit or options.kl is not None else LOW_NOISE
    return options.sharpening_sigma
