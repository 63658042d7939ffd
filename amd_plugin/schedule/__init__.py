"""Noise schedules and rungs, read off the very diffusers scheduler that is exported with the student."""

from amd_plugin.schedule.few_step import Ladder, few_step_scheduler, sample
from amd_plugin.schedule.noise import NoiseSchedule
from amd_plugin.schedule.sub_interval import floors

__all__ = ["Ladder", "NoiseSchedule", "few_step_scheduler", "floors", "sample"]
