"""Networks too large for every process to keep whole, sharded over processes with DeepSpeed ZeRO.

DeepSpeed is driven directly, on the process group that accelerate made: no DeepSpeed plugin is ever active, so nothing else
that is loaded meanwhile, text encoders and rewards for two, can be sharded by accident.
"""
