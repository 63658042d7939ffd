"""The parts of FastGen that its adapter builds on, checked for the signatures that the adapter was written for."""

from __future__ import annotations

import importlib.util
from typing import Any

from amd_plugin.adapters.compatibility import Host
from amd_plugin.errors import MissingDependency

# The repository has no releases to name here: the commit is the one that the tests run on.
TESTED = "34f30e8ff1a563555fc0c7d59f1c1409dacd8af2"
HOST = Host("fastgen", "0.1", "0.2", f"git+https://github.com/NVlabs/FastGen@{TESTED}", package="fastgen", commit=TESTED)


def load(module: str) -> Any:
    """A module of NVIDIA's FastGen, and not of the unrelated package of that name on PyPI."""
    spec = importlib.util.find_spec("fastgen")
    if spec is not None and importlib.util.find_spec("fastgen.methods") is None:
        message = f"fastgen: {spec.origin or '?'} is the unrelated package of that name on PyPI, not NVIDIA's FastGen"
        raise MissingDependency(f"{message}. pip uninstall fastgen, then {HOST.how_to_get}")
    return HOST.load(module)


DMD2Model = load("fastgen.methods").DMD2Model
Callback = load("fastgen.callbacks.callback").Callback
losses = load("fastgen.methods.common_loss")

_DRAWS = "self, input_student, t_student, t, eps"
HOST.check(
    DMD2Model,
    {
        "__init__": "self, config",
        "single_train_step": "self, data, iteration",
        "gen_data_from_net": "self, input_student, t_student, condition",
        "_compute_teacher_prediction_gan_loss": "self, perturbed_data, t, condition",
        "_generate_noise_and_time": "self, real_data",
        "build_model": "self",
        "_student_update_step": f"{_DRAWS}, data, condition, neg_condition",
        "_fake_score_discriminator_update_step": f"{_DRAWS}, real_data, condition",
    },
)
_DRAWN = "self, n, sample_steps, t_list, return_ids, device"
_schedules = load("fastgen.networks.noise_schedule")
EDMNoiseSchedule = _schedules.EDMNoiseSchedule
HOST.check(_schedules.BaseNoiseSchedule, {"sample_from_t_list": _DRAWN})
HOST.check(
    Callback,
    {
        "on_model_init_start": "self, model",
        "on_dataloader_init_end": "self, model, dataloader_train, dataloader_val, iteration",
        "on_validation_step_end": "self, model, data_batch, output_batch, loss_dict, step, iteration, idx",
        "on_validation_end": "self, model, iteration, idx",
        "state_dict": "self",
        "load_state_dict": "self, state_dict",
    },
)
HOST.check(losses, {"denoising_score_matching_loss": "pred_type, net_pred, x0, eps, noise_scheduler, t"})
