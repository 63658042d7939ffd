"""The parts of FastVideo that its adapter builds on, checked for the signatures that the adapter was written for."""

from __future__ import annotations

from amd_plugin.adapters.compatibility import Host

HOST = Host("fastvideo", "0.2", "0.3", "fastvideo>=0.2,<0.3")

_matching = "fastvideo.train.methods.distribution_matching"
DMD2Method = HOST.load(f"{_matching}.dmd2").DMD2Method
SelfForcingMethod = HOST.load(f"{_matching}.self_forcing").SelfForcingMethod
Callback = HOST.load("fastvideo.train.callbacks.callback").Callback
ValidationCallback = HOST.load("fastvideo.train.callbacks.validation").ValidationCallback
ModelBase = HOST.load("fastvideo.train.models.base").ModelBase
checkpoints = HOST.load("fastvideo.train.utils.checkpoint")

_TURNS = {
    "__init__": "self, cfg, role_models",
    "single_train_step": "self, batch, iteration",
    "on_train_start": "self",
    "_student_rollout": "self, batch, with_grad",
    "_dmd_loss": "self, generator_pred_x0, batch",
    "_critic_flow_matching_loss": "self, batch",
    "_get_denoising_step_list": "self, device",
    "_should_update_student": "self, iteration",
}
_PREDICT = "self, noisy_latents, timestep, batch, conditional, cfg_uncond, attn_kind"
HOST.check(DMD2Method, _TURNS)
HOST.check(
    SelfForcingMethod,
    {**_TURNS, "_sf_add_noise": "self, clean_latents, noise, timestep",
     "_sample_exit_indices": "self, num_blocks, num_steps, device",
     "_predict_x0_with_scheduler": "self, model, noisy_latents, timestep, batch, conditional, attn_kind"},
)  # fmt: skip
HOST.check(checkpoints, {"_resolve_resume_checkpoint": "resume_from_checkpoint, output_dir"})
_WHEN = "self, method, iteration"
HOST.check(Callback, {"on_train_start": _WHEN, "on_validation_begin": _WHEN, "state_dict": "self"})
HOST.check(Callback, {"load_state_dict": "self, state_dict"})
HOST.check(
    ValidationCallback,
    {
        "_run_validation": "self, method, step",
        "_run_validation_for_steps": "self, num_inference_steps, transformer",
        "_get_pipeline": "self, transformer",
    },
)
HOST.check(
    ModelBase,
    {"predict_x0": _PREDICT, "predict_noise": _PREDICT, "add_noise": "self, clean_latents, noise, timestep",
     "decode_latents": "self, latents_b_t_c_h_w", "shift_and_clamp_timestep": "self, timestep"},
)  # fmt: skip
