"""A user's own data: prompts, with or without pictures, from files, folders or the hub.

Embedded tasks with a known truth live in `amd_plugin.tasks`; models and rewards are not imported here.
"""
