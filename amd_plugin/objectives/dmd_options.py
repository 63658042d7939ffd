"""The options of DMD, which all objectives of this package share, and those of its presets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from amd_plugin.errors import OptionError
from amd_plugin.options import Removed, Strict, option, preset

NonNegative = Annotated[float, Field(ge=0)]
Window = Annotated[tuple[float, float], Field(strict=False)]

_DECOUPLED = ("guidance_sigma", "match_sigma")


class DMDOptions(Strict):
    """Options of DMD; sigma is a noise level, as a fraction of the schedule."""

    guidance_scale: NonNegative = option(
        1.0, "Guidance scale w of the teacher in the form uncond + w (cond - uncond); 1 is no guidance."
    )
    guidance_window: Window | None = option(
        None, "Noise levels [low, high] outside which the guidance term is left out, at no extra forward.",
        group="regime", needs="noise_level",
    )  # fmt: skip
    reward_gradient: NonNegative = option(
        0.0, "Weight of a differentiable reward's gradient, divided by the largest running spread of rewards within prompts "
        "(undivided in DMDR, 2511.13649); strong and easily hacked; needs two samples per prompt.",
        group="regime", needs="reward_gradient",
    )  # fmt: skip
    gan_weight: NonNegative = option(
        0.0, "Weight of DMD2's adversarial loss on the fake score's features; 0 leaves it out.",
        group="regime", needs="discriminator",
    )  # fmt: skip
    gan_r1: NonNegative = option(
        0.0, "Weight of the discriminator's approximate R1 penalty (2501.08316).", group="expert", needs="discriminator"
    )
    gan_r1_sigma: NonNegative = option(
        0.01, "Standard deviation of the noise that the R1 penalty adds to real samples.",
        group="expert", needs="discriminator",
    )  # fmt: skip
    guidance_sigma: Window | None = option(
        None, "Noise levels [low, high] of the guidance term, with a draw and a teacher call of its own.",
        group="expert", needs="guidance_range",
    )  # fmt: skip
    match_sigma: Window | None = option(
        None, "Noise levels [low, high] of the matching term, instead of train.sigma.", group="expert", needs="match_range"
    )
    normalizer: Literal["per_sample", "global"] = option(
        "per_sample", "Mean in DMD2's normaliser: over each sample, or over the whole micro-batch as in FastVideo.",
        group="expert",
    )  # fmt: skip


PlainDMDOptions = preset("PlainDMDOptions", DMDOptions, without=_DECOUPLED)
PlainDMDOptions.REMOVED = {
    "guidance_sigma": Removed(None, "use objective decoupled_dmd"),
    "match_sigma": Removed(None, "use objective decoupled_dmd, or train.sigma"),
}
DMD2Options = preset("DMD2Options", PlainDMDOptions, gan_weight=5e-3)
DecoupledDMDOptions = preset(
    "DecoupledDMDOptions", DMDOptions, without=("guidance_window", "gan_weight", "gan_r1", "gan_r1_sigma"),
    guidance_scale=1.5, guidance_sigma=(0.02, 0.98),
)  # fmt: skip


def check_windows(options: DMDOptions, *names: str) -> None:
    """Raises OptionError for the first of the named options that is no [low, high] with 0 <= low < high."""
    for name in names:
        window = getattr(options, name)
        if isinstance(window, tuple) and not 0 <= window[0] < window[1]:
            raise OptionError(name, f"must be [low, high] with 0 <= low < high, got {list(window)}")


def check_dmd(options: DMDOptions) -> None:
    """Raises OptionError for options of DMD that exclude each other, or windows out of range."""
    check_windows(options, "guidance_sigma", "guidance_window", "match_sigma")
    if options.guidance_sigma is not None and options.guidance_window is not None:
        got = f"got both; leave out {options.guidance_window}"
        raise OptionError("guidance_window", f"guidance_sigma draws the noise levels of guidance already, {got}")
