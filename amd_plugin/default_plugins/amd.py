"""AMD and what it is compared with, as a plugin: the target of entry point ``amd`` in group ``distill_host``.

A third party's plugin looks the same.
"""

from collections.abc import Callable, Mapping

from amd_plugin.hookspecs import Objective, hookimpl
from amd_plugin.imported import Imported

RIVALS = {
    "policy_gradient": "policy_gradient:PolicyGradientObjective",
    "best_of_k": "best_of_k:BestOfKObjective",
    "diffusion_nft": "diffusion_nft:DiffusionNFTObjective",
    "re_dmd": "re_dmd:ReDMDObjective",
    "gndm": "gndm:GNDMObjective",
    "dp_dmd": "dp_dmd:DPDMDObjective",
}


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """The objective ``amd``, and its `RIVALS`."""
    rivals = {name: f"amd_plugin.objectives.rivals.{place}" for name, place in RIVALS.items()}
    return Imported({"amd": "amd_plugin.objectives.amd:AMDObjective", **rivals})
