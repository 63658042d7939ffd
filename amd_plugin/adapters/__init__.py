"""AMD inside other toolkits: ``HOST.py`` is what its users name, and importing it imports the toolkit.

``HOST_host.py`` has the parts of the toolkit that an adapter builds on, compared with those it was written for by
`compatibility`. What AMD does in a toolkit's turns is in `fastvideo_method`, `lightx2v_trainer`, `modelopt` and `fastgen`.

All adapters share the rest. `bridge` turns rewards into advantages; `sample_scores`, `named_rewards`, `conditioning`,
`failures`, `harvest` and `validation` each do one thing for it. `shim` adds objectives to any trainer with argparse. Nothing
here imports the reference host's trainer.
"""
