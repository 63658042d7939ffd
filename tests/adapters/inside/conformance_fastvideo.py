"""FastVideo's adapter for the conformance tests: FastVideo's trainer in a thread, which waits between two calls of `Run.train`."""

import contextlib
import os
import queue
import socket
import tempfile
import threading

import conftest  # noqa: F401  # declares torchvision's operators before anything imports it
import fastvideo.train.trainer
import torch
import yaml
from fastvideo.train.callbacks.callback import Callback
from fastvideo.train.entrypoint.train import run_training_from_config
from fastvideo.train.models.base import ModelBase
from toy_fastvideo import STATE, STOCK, Log, settings

from amd_plugin import get_plugin_manager, hookimpl
from amd_plugin.adapters.fastvideo import AMDMethod
from amd_plugin.testing.adapter import ReorderedDraws, Trace

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
fastvideo.train.trainer.build_tracker = lambda *args, **kwargs: Log()
ModelBase.device = torch.device("cpu")
torch.cuda.get_rng_state, torch.cuda.set_rng_state = torch.get_rng_state, lambda state: None


class Method(AMDMethod):
    """AMD with the reward of the newest run."""


class Given:
    """A plugin with one reward."""

    def __init__(self, reward):
        self.reward = reward

    @hookimpl
    def distill_rewards(self):
        return {"given": lambda: self.reward}


class Gate(Callback):
    """Holds the trainer before its first step and after the number of steps that `Run.train` asks for."""

    run = None  # of the thread that is being started

    def on_train_start(self, method, iteration=0):
        self.run_of_method, self.method = Gate.run, method

    def on_training_step_end(self, method, metrics, iteration=0):
        self.run_of_method.losses.append(torch.tensor(metrics["total_loss"]))

    def on_validation_begin(self, method, iteration=0):
        # After the checkpoint of this step; before the first, and before the random numbers of a resumed run are put back.
        self.run_of_method.hold(method)


class Run:
    def __init__(self, method, amd=None, reward=None, order=None, resume=None):
        self.folder, self.order, self.losses, self.allowed = tempfile.mkdtemp(), order, [], 0
        self.arguments = (method, amd, reward, order)
        self.step = 0
        self.steps_to_make, self.answers = queue.Queue(), queue.Queue()
        written = settings(self.folder, method, amd, steps=10**6, save=1, resume=resume or "")
        written["models"]["student"]["order"] = order
        written["callbacks"] |= {"gate": {"_target_": "conformance_fastvideo.Gate"}} | (STATE if amd is not None else {})
        self.path = os.path.join(self.folder, "run.yaml")
        with open(self.path, "w") as file:
            yaml.safe_dump(written, file)
        Gate.run, Method.plugins = self, get_plugin_manager()
        Method.plugins.register(Given(reward), "given")
        threading.Thread(target=self.go, daemon=True).start()
        self.wait()

    def go(self):
        """The thread: the host's own entry point."""
        try:
            with contextlib.nullcontext() if self.order is None else ReorderedDraws(self.order):
                run_training_from_config(self.path)
        except BaseException as error:
            self.answers.put(error)

    def hold(self, method):
        """In the thread, between two steps."""
        self.method = method
        if self.allowed == 0:
            self.answers.put(None)
            self.allowed = self.steps_to_make.get()
        self.allowed -= 1

    def wait(self):
        error = self.answers.get(timeout=120)
        if error is not None:
            raise error

    def train(self, steps):
        self.losses = []
        self.steps_to_make.put(steps)
        self.wait()
        self.step += steps
        roles = (self.method.student, self.method.critic)
        weights = [p.detach().clone() for role in roles for p in role.transformer.parameters()]
        return Trace(self.losses, weights, self.method.cuda_generator.get_state())

    def state(self):
        return os.path.join(self.folder, f"checkpoint-{self.step}"), self.step

    def restore(self, state):
        self.__init__(*self.arguments, resume=state[0])
        self.step = state[1]


class FastVideo:
    def stock(self):
        return Run(STOCK)

    def amd(self, options, reward, order=None):
        reward_option = {} if reward is None else {"reward": {"name": "given"}}
        return Run("conformance_fastvideo.Method", {**options, **reward_option}, reward, order)
