"""Networks that are too large for each process to hold whole, sharded over processes with DeepSpeed ZeRO.

DeepSpeed is called directly, on accelerate's process group, and no DeepSpeed plugin of accelerate is ever active. Networks that
load meanwhile, such as text encoders and rewards, can therefore not be sharded by accident.
"""
