"""An objective for a host that has a guidance scale of its own, and that offers some of what objectives may need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from amd_plugin.adapters.offers import OFFERS
from amd_plugin.contract import refuse_what_is_missing
from amd_plugin.errors import InputError, OptionError
from amd_plugin.hookspecs import Objective
from amd_plugin.objectives.amd import AMDObjective
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.options import checked, metadata, preset


def adaptive_objective(guidance_scale: float, options: Mapping[str, Any], offers: Collection[str] = OFFERS) -> AMDObjective:
    """`AMDObjective` with `options`, for a host with a guidance scale of its own.

    Args:
        guidance_scale: guidance scale of the host's configuration, in the standard form.
        options: options of `AMDObjective` other than ``guidance_scale``, by name.
        offers: names of the fields of `Needs` that the host can give.

    Raises:
        InputError: for an option that is unknown, out of range, set by the host, or in need of what the host does not offer.
    """
    if "guidance_scale" in options:
        raise InputError("amd.guidance_scale: is set in the host's own configuration. Leave it out here")
    model = preset("AMDOptions", AMDOptions, without=("guidance_scale",))
    given = checked(model, options, lambda option: f"amd.{option}")
    try:
        objective = AMDObjective(guidance_scale, **{option: getattr(given, option) for option in given.model_fields_set})
    except OptionError as error:
        raise InputError(f"amd.{error}") from error
    for need, meaning in objective.needs.missing(offers).items():
        asking = [option for option in options if metadata(AMDOptions.model_fields[option]).get("needs") == need]
        message = f"amd.{asking[0] if asking else need}: needs {meaning}, which this host does not offer"
        raise InputError(f"{message}. Leave it out; the host's own configuration may have an equivalent")
    return objective


def require_fit(objective: Objective, guidance_scale: float, offers: Collection[str] = OFFERS) -> None:
    """Checks an `objective` that was built outside of the adapter.

    Args:
        objective: objective to check.
        guidance_scale: guidance scale of the host's configuration, in the standard form.
        offers: names of the fields of `Needs` that the host can give.

    Raises:
        InputError: for another guidance scale, a need that the host does not offer, or prompts without a reward, for the sake
            of which an adapter reads them.
    """
    if objective.guidance_scale != guidance_scale:
        message = (
            f"must have the guidance scale of the host's configuration, {guidance_scale:g}, got {objective.guidance_scale:g}"
        )
        raise InputError(f"objective: {message}")
    refuse_what_is_missing(objective, offers)
    if objective.needs.groups and not objective.needs.reward:
        message = "needs the prompt of each sample and no reward; this host gives prompts with a reward only"
        raise InputError(f"objective {type(objective).__name__}: {message}. Train it on the reference host")
