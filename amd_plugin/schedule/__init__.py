"""Noise schedules and rungs, taken from the diffusers scheduler that is exported with the student.

Nothing here depends on models, data or training.
"""

from amd_plugin.schedule.few_step import Ladder, few_step_scheduler, sample
from amd_plugin.schedule.noise import NoiseSchedule
from amd_plugin.schedule.sub_interval import floors

__all__ = ["Ladder", "NoiseSchedule", "few_step_scheduler", "floors", "sample"]
