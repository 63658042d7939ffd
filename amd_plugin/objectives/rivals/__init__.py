"""What AMD is compared with: other people's ways to use the same reward on the same samples, each an objective by name.

The equations and their sources are in `amd_plugin.maths.rivals`. Every one is `DMDObjective` where its strength is 0.
"""
