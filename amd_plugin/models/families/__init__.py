"""The diffusers pipelines that can be distilled, one per file; `amd_plugin.models.family` defines what each must have."""
