"""The parts of LightX2V that its adapter builds on, checked for the signatures that the adapter was written for."""

from __future__ import annotations

from amd_plugin.adapters.compatibility import Host

# LightX2V's trainer has no version and is in no package: the commit is the one that the tests run on.
TESTED = "f8aee98b5462cca8d7288888146ebd95592bf266"
_CLONE = f"git clone https://github.com/ModelTC/LightX2V && git -C LightX2V checkout {TESTED}"
_HOW = f"{_CLONE}, with its folder lightx2v_train on PYTHONPATH"
HOST = Host("lightx2v_train", "0", "", _HOW, package="lightx2v_train", commit=TESTED)

_trainers, _dmd = "lightx2v_train.trainers", "lightx2v_train.trainers.dmd"
DmdTrainer = HOST.load(f"{_dmd}.trainer").DmdTrainer
VideoDmdTrainer = HOST.load(f"{_dmd}.video_trainer").VideoDmdTrainer
VideoArDmdTrainer = HOST.load(f"{_dmd}.video_ar_trainer").VideoArDmdTrainer
VideoPhasedDmdTrainer = HOST.load(f"{_trainers}.phased_dmd.trainer").VideoPhasedDmdTrainer
TRAINER_REGISTER = HOST.load("lightx2v_train.utils.registry").TRAINER_REGISTER
load_config = HOST.load("lightx2v_train.runtime").load_config
distributed = HOST.load("lightx2v_train.runtime.distributed")

_SHARED = {
    "__init__": "self, config",
    "set_data": "self, dataloader_train, dataloader_eval",
    "setup": "self, resume_ckpt_path",
    "_setup_trainable_model": "self, model, role",
    "_setup_ida_trick": "self",
    "run_inference": "self, current_iter",
    "_encode_conditions": "self, sample",
    "_predict_velocity": "self, model, latents, sigma, condition",
    "_predict_teacher_velocity": "self, latents, sigma, condition, negative_condition",
    "_do_cfg": "cond_pred, uncond_pred, cfg_scale, cfg_norm",
    "_dmd_loss": "latents, x_pred_fake_flow, x_pred_teacher, norm_clip_min",
    "_sample_synced_int": "self, low, high",
    "_after_student_optimizer_step": "self, role",
    "log_metrics": "self, metrics, step",
    "save_checkpoint": "self, iteration, save_total_limit",
    "_load_resume_state": "self, resume_ckpt_path",
}
_WINDOW = "denoised_timestep_from, denoised_timestep_to"
_VIDEO = {
    **_SHARED, "forward_loss": "self, latent_shape, conditions, stage, initial_noise",
    "run_back_simulation": "self, condition, latent_shape, grad_enabled, xt",
    "_sample_score_sigma": f"self, batch_size, {_WINDOW}, device, dtype",
}  # fmt: skip
HOST.check(DmdTrainer, {**_SHARED, "forward_loss": "self, latent_shape, conditions, stage, current_iter"})
HOST.check(DmdTrainer, {"run_back_simulation": "self, condition, latent_shape, end_step_idx, grad_enabled, xt"})
HOST.check(VideoDmdTrainer, _VIDEO)
HOST.check(VideoArDmdTrainer, {**_VIDEO, "_sample_exit_indices": "self, num_blocks, num_steps, device"})
HOST.check(
    VideoPhasedDmdTrainer,
    {
        **_SHARED,
        "_run_full_fake_rollout": "self, condition, latent_shape, xt",
        "_dmd_loss_for_region": "self, anchor, student_x0, sigma_s, conditions, region, teacher_branch",
        "_fake_loss_for_score_range": "self, fake_model, anchor, sigma_s, condition, raw_min, raw_max",
        "_sample_score_sigma_range": "self, batch_size, raw_min, raw_max, device, dtype",
        "_phased_velocity_target": "self, xs, noise, sigma_s, sigma_t",
    },
)
