"""DMD and AMD as stateful objectives over `amd_plugin.maths`, with their options and running statistics.

No optimizer, device, model or process group belongs here, and no feature of a single host.
"""
