"""AMD inside other toolkits: one module per toolkit, whose import imports the toolkit.

`compatibility` compares an installed host with the one an adapter was written for. `bridge` turns rewards into advantages for
all adapters, and `shim` adds objectives to any trainer with argparse. Nothing here imports the reference host.
"""
