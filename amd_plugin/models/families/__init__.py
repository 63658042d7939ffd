"""The diffusers pipelines that can be distilled, a file each; `amd_plugin.models.family` says what such a file must bring."""
