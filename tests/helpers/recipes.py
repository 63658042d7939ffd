"""Settings with which a recipe trains in a second: four student updates by --set, three as arguments of a command."""

TINY = (
    "model.width=16", "model.teacher.steps=30", "train.max_steps=4", "train.batch_size=16", "train.group_size=4",
    "train.log_every=1", "train.evaluate_every=0", "train.trackers=[]", "evaluate.samples=160",
)  # fmt: skip

ON_THE_COMMAND_LINE = [
    "--set=model.width=16", "--set=model.teacher.steps=30", "--set=train.max_steps=3", "--set=train.batch_size=16",
    "--set=train.group_size=4", "--set=train.trackers=[]", "--set=evaluate.samples=160", "--set=train.evaluate_every=1",
]  # fmt: skip
