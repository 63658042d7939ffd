"""The parts of ModelOpt that its adapter builds on, checked for the signatures that the adapter was written for."""

from __future__ import annotations

from amd_plugin.adapters.compatibility import Host

HOST = Host("nvidia-modelopt", "0.45", "0.48", "nvidia-modelopt>=0.45")

fastgen = HOST.load("modelopt.torch.fastgen")
dmd = HOST.load("modelopt.torch.fastgen.methods.dmd")
DMDPipeline = fastgen.DMDPipeline

_MODEL_CALL = "self, model, hidden_states, timestep, encoder_hidden_states"
_TURN = "self, latents, noise, encoder_hidden_states"
_NEGATIVE = "negative_encoder_hidden_states, negative_encoder_hidden_states_mask, guidance_scale"
HOST.check(
    DMDPipeline,
    {
        "__init__": "self, student, teacher, fake_score, config, discriminator",
        "_call_model": f"{_MODEL_CALL}, model_kwargs",
        "_predict_x0": f"{_MODEL_CALL}, native_pred_type, model_kwargs",
        "_convert_pred": "self, raw, x_t, t, from_pred_type, to_pred_type",
        "_build_student_input": f"{_TURN}, model_kwargs",
        "sample_timesteps": "self, n, device, dtype",
        "compute_student_loss": f"{_TURN}, {_NEGATIVE}, model_kwargs",
        "compute_fake_score_loss": f"{_TURN}, model_kwargs",
    },
)
HOST.check(dmd, {"dsm_loss": "pred_type, net_pred, x0, eps, t, alpha_fn, sigma_fn"})
HOST.check(dmd, {"add_noise": "x0, eps, t", "x0_to_eps": "x0, x_t, t", "rf_alpha": "t", "rf_sigma": "t"})
