"""The plugin manager: it finds plugins, and isolates those that fail.

`get_plugin_manager()` registers the host's default plugins and every entry point of group ``distill_host``. A plugin that
cannot be imported, has a wrong signature, claims a name in use or raises in a hook is set aside with its cause; the others
keep working. `AMD_PLUGIN_LOAD` (comma-separated; empty = none) names the only entry points to load, `AMD_PLUGIN_DISABLE`
those to leave out. Files in `AMD_PLUGIN_LOAD`, which end in .py, are loaded beside the entry points.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pluggy

from amd_plugin import hookspecs, plugin_files
from amd_plugin.contract import ACCEPT, objective_problem, own_copies
from amd_plugin.errors import AmdPluginError, InputError, did_you_mean, in_words
from amd_plugin.hookspecs import NAME, Objective
from amd_plugin.process_settings import as_they_were

log = logging.getLogger(__name__)
Value = TypeVar("Value")

# By dotted name, so that this module imports no host. `amd` is loaded from its entry point, like a third party's plugin.
DEFAULT_PLUGINS = {"host": "amd_plugin.default_plugins.host"}
CATALOGUE = ("distill_objectives", "distill_rewards", "distill_families")
STEERING = ("distill_sigma_sampler", "distill_strength_schedule", "distill_advantage_schedule")
SLOW = 3.0  # seconds after which a plugin that is waited for is named


@dataclass
class PluginStatus:
    """Status of a plugin, one line of ``amd-plugin plugins``.

    Attributes:
        name: name of the entry point, or the name given to `register`.
        distribution: name and version of the installed distribution; empty for a plugin registered by hand.
        status: ``active``, ``disabled`` (by the environment) or ``failed``.
        hooks: names of the implemented hooks.
        cause: cause of the failure, or a remark on an active plugin.
        error: exception behind the failure, if any.
    """

    name: str
    distribution: str = ""
    status: str = "active"
    hooks: list[str] = field(default_factory=list)
    cause: str = ""
    error: BaseException | None = field(default=None, repr=False)


class PluginManager(pluggy.PluginManager):
    """pluggy's manager, with hook calls that survive a plugin that raises.

    Attributes:
        statuses: status of every plugin by name, of failed and disabled ones too.
    """

    def __init__(self) -> None:
        super().__init__(NAME)
        self.statuses: dict[str, PluginStatus] = {}
        self.add_hookspecs(hookspecs)

    def steering(self) -> list[str]:
        """Names of the plugins that move noise levels or strengths. Results depend on them, and no recipe names them."""
        return sorted({hook.plugin_name for name in STEERING for hook in getattr(self.hook, name).get_hookimpls()})

    def register(self, plugin: object, name: str | None = None, distribution: str = "") -> str | None:
        """Adds a plugin by hand. As for entry points, a broken plugin is set aside and raises nothing.

        Args:
            plugin: module or object with hook functions.
            name: name of the plugin; None for pluggy's canonical one.
            distribution: name and version of its distribution, for `statuses`.

        Returns:
            Name of the plugin; None if it failed or is blocked, see `statuses`.

        Raises:
            ValueError: if the plugin or its name is registered already.
        """
        name = name or self.get_canonical_name(plugin)
        if self.has_plugin(name) or self.is_registered(plugin):
            raise ValueError(f"plugin '{name}' is registered already")
        status = self.statuses[name] = PluginStatus(name, distribution)
        try:
            registered = super().register(plugin, name)
            if registered is None:
                status.status, status.cause = "disabled", "blocked"
            else:
                self._watch(plugin, status)
        except Exception as error:
            # pluggy leaves a plugin it rejected registered, without its hooks.
            if self.get_name(plugin):
                self.unregister(plugin)
            self._fail(name, error)
            return None
        return registered

    def load_entry_points(self) -> None:
        """Loads every entry point of the group that the environment allows, each on its own, in order of distribution."""
        allowed, denied = _names(plugin_files.VARIABLE), _names("AMD_PLUGIN_DISABLE") or set()
        if allowed:
            # Where only files are named, entry points are loaded as ever.
            allowed = {name for name in allowed if not plugin_files.is_file(name)} or None
        points = importlib.metadata.entry_points(group=NAME)
        for name in sorted((allowed or set()) - {point.name for point in points}):
            log.warning("AMD_PLUGIN_LOAD: no plugin is called '%s'.%s", name, did_you_mean(name, (p.name for p in points)))
        # Plugins of this package first, so that no other plugin can claim the documented names.
        for point in sorted(points, key=lambda p: (not p.value.startswith("amd_plugin."), _distribution(p), p.name)):
            if point.name in denied or (allowed is not None and point.name not in allowed):
                variable = "AMD_PLUGIN_DISABLE" if point.name in denied else "AMD_PLUGIN_LOAD"
                self.statuses[point.name] = PluginStatus(point.name, _distribution(point), "disabled", cause=f"by {variable}")
                continue
            if point.name in self.statuses:
                duplicate = PluginStatus(point.name, _distribution(point))
                self.statuses[f"{point.name} ({duplicate.distribution})"] = duplicate
                self._fail(f"{point.name} ({duplicate.distribution})", InputError(f"another plugin is called '{point.name}'"))
                continue
            try:
                with self._named_if_slow("being imported", point.name), as_they_were(f"plugin {point.name}"):
                    module = point.load()
                self.register(module, point.name, _distribution(point))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.statuses[point.name] = PluginStatus(point.name, _distribution(point))
                self._fail(point.name, error)

    def load_files(self) -> None:
        """Loads the plugin files that the user named.

        Raises:
            InputError: for one that cannot be loaded, or holds no hook: the user asked for this very file.
        """
        for name in sorted(filter(plugin_files.is_file, _names(plugin_files.VARIABLE) or ())):
            file = Path(name)
            if self.has_plugin(file.name):
                raise InputError(f"plugin file {file}: another plugin is called '{file.name}'; give it another name")
            with self._named_if_slow("being imported", file.name), as_they_were(f"plugin file {file}"):
                module = plugin_files.read(file)
            registered = self.register(module, file.name)
            status = self.statuses[file.name]
            if registered is None or not status.hooks:
                problem = status.cause or "it has no hook: no function distill_... under @amd_plugin.hookimpl (docs/hooks.md)"
                raise InputError(f"plugin file {file}: {problem}") from status.error

    def agree(self, own: Value, gather: Callable[[Any], Sequence[Any]]) -> Value:
        """What hooks gave on the first process, for all; a plugin that failed on one of them is set aside on every one.

        Args:
            own: what the hooks gave on this process.
            gather: function of something to that of every process, in order of rank. All processes call it equally often.
        """
        causes = {name: status.cause for name, status in self.statuses.items() if status.status == "failed"}
        everywhere = gather((own, causes))
        for rank, (_, theirs) in enumerate(everywhere):
            for name, cause in theirs.items():
                if name in self.statuses and self.statuses[name].status == "active":
                    self._set_aside(name, f"on process {rank}: {cause}")
        first: Value = everywhere[0][0]
        return first

    def objectives(self) -> Mapping[str, Callable[..., Objective]]:
        """Factories of all plugins' objectives by name."""
        return self._catalogue()["distill_objectives"]

    def rewards(self) -> Mapping[str, Callable[..., Any]]:
        """Factories of all plugins' rewards by name."""
        return self._catalogue()["distill_rewards"]

    def families(self) -> Mapping[str, type[Any]]:
        """All plugins' families of pipelines by class name of the pipeline."""
        families: Mapping[str, type[Any]] = self._catalogue()["distill_families"]  # type: ignore[assignment]
        return families

    def objective_factory(self, name: str) -> Callable[..., Objective]:
        """The factory of objective `name`.

        Raises:
            InputError: if there is none, with the names of all objectives and the causes of failed plugins.
        """
        return self._find("objective", name, self.objectives())

    def reward_factory(self, name: str) -> Callable[..., Any]:
        """The factory of reward `name`; raises InputError like `objective_factory`."""
        return self._find("reward", name, self.rewards())

    def make_objective(self, name: str, options: Mapping[str, Any] | None = None) -> Objective:
        """Builds objective `name` with keyword `options`.

        Raises:
            InputError: if no plugin provides it, or it refuses its options.
        """
        factory = self.objective_factory(name)
        try:
            with as_they_were(f"objective '{name}'"):
                objective: Objective = self.hook.distill_make_objective(name=name, factory=factory, options=dict(options or {}))
            problem = objective_problem(objective)
        except (AmdPluginError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise InputError(f"objective '{name}' could not be built: {in_words(error)}") from error
        if problem:
            kind = type(objective).__name__
            raise InputError(f"objective '{name}' is a {kind} {problem}: not an Objective (amd_plugin.hookspecs)")
        return objective

    def _watch(self, plugin: object, status: PluginStatus) -> None:
        """Wraps the plugin's hooks so that an exception sets it aside, and reports names of hooks that do not exist."""
        for caller in self.get_hookcallers(plugin) or []:
            status.hooks.append(caller.name)
            if not caller.has_spec():
                hint = did_you_mean(caller.name, (n for n in vars(hookspecs) if n.startswith("distill_")))
                status.cause = f"unknown hook '{caller.name}'.{hint}"
                log.warning("plugin %s: %s It is never called", status.name, status.cause)
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                if implementation.wrapper or implementation.hookwrapper:
                    raise InputError(f"{caller.name} is a hook wrapper; these cannot be isolated and are not accepted")
                # Plugins of this package are not isolated: they may raise InputError.
                if not str(getattr(plugin, "__name__", "")).startswith("amd_plugin."):
                    guarded = self._isolated(implementation, caller.name, status.name)
                    # pluggy offers no wrapper around a single implementation, so the called attribute is replaced.
                    implementation.function = guarded  # type: ignore[misc]
        status.hooks.sort()

    def _isolated(self, implementation: pluggy.HookImpl, hook: str, name: str) -> Callable[..., Any]:
        """The one way by which a plugin's hooks are called: on copies, and what they return is checked."""
        function, names = implementation.function, implementation.argnames

        @functools.wraps(function)
        def guarded(*args: Any) -> Any:
            if self.statuses[name].status == "failed":
                return None
            given = dict(zip(names, args, strict=True))
            try:
                slow = self._named_if_slow(f"in {hook}", name, waits=hook in CATALOGUE)
                with slow, as_they_were(f"plugin {name}, {hook}"):
                    result = function(*own_copies(given).values())
                return None if result is None or hook not in ACCEPT else ACCEPT[hook](result)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._fail(name, error, context=f"in {hook}: ")
                return None

        return guarded

    @contextmanager
    def _named_if_slow(self, where: str, name: str, *, waits: bool = True) -> Iterator[None]:
        """Says which plugin holds everything up, if it does for `SLOW` seconds; it is waited for all the same."""
        if not waits:
            yield
            return
        out = f"Ctrl-C ends this; AMD_PLUGIN_DISABLE={name} does without it"
        timer = threading.Timer(
            SLOW, log.warning, ("plugin %s: still %s after %g s, and waited for. %s", name, where, SLOW, out)
        )
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _fail(self, name: str, error: BaseException, context: str = "") -> None:
        self.statuses[name].error = error
        self._set_aside(name, f"{context}{in_words(error)}")

    def _set_aside(self, name: str, cause: str) -> None:
        self.statuses[name].status, self.statuses[name].cause = "failed", cause
        log.warning("plugin %s is set aside: %s", name, cause)

    def _catalogue(self) -> Mapping[str, Mapping[str, Callable[..., Any]]]:
        """Factories by hook and name. A plugin that claims a name in use fails, and provides nothing."""
        catalogue = {hook: _Factories() for hook in CATALOGUE}
        owners: dict[tuple[str, str], str] = {}
        # pluggy would call the plugins in reverse order, but a name belongs to the first registered plugin.
        for plugin, _ in self.list_name_plugin():
            provided: dict[str, Mapping[str, Any]] = {}
            for hook in catalogue:
                for implementation in getattr(self.hook, hook).get_hookimpls():
                    if implementation.plugin_name == plugin:
                        provided[hook] = implementation.function() or {}
            taken = next(((h, n) for h, names in provided.items() for n in names if n in catalogue[h]), None)
            if taken is not None and self.statuses[plugin].status == "active":
                kind = {"distill_families": "family"}.get(taken[0], taken[0].removeprefix("distill_").removesuffix("s"))
                self._fail(plugin, InputError(f"{kind} '{taken[1]}' is provided by plugin {owners[taken]} already"))
            if self.statuses[plugin].status != "active":
                continue
            for hook, names in provided.items():
                catalogue[hook].sources.update(dict.fromkeys(names, names))
                owners.update({(hook, name): plugin for name in names})
        return catalogue

    def _find(self, kind: str, name: str, factories: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
        if name in factories:
            return factories[name]
        own = f"your own: --plugin FILE.py, or in another toolkit {plugin_files.VARIABLE}=FILE.py."
        known = f"There are: {', '.join(sorted(factories))}; {own}"
        lines = [f"unknown {kind} '{name}'.{did_you_mean(name, factories)} {known}"]
        lines += [
            f"Plugin {s.name} {s.status}, which may have provided it: {s.cause}"
            for s in self.statuses.values()
            if s.status != "active"
        ]
        error = InputError("\n".join(lines))
        error.__cause__ = next((s.error for s in self.statuses.values() if s.error is not None), None)
        raise error


class _Factories(Mapping[str, Callable[..., Any]]):
    """Factories by name, each read from its plugin's own mapping when it is asked for: the mapping may import it then.

    Attributes:
        sources: mapping that holds the factory, by name.
    """

    def __init__(self) -> None:
        self.sources: dict[str, Mapping[str, Callable[..., Any]]] = {}

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.sources[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __contains__(self, name: object) -> bool:
        return name in self.sources


def get_plugin_manager() -> PluginManager:
    """A new manager with the host's default plugins, all installed ones, and the files in `AMD_PLUGIN_LOAD`.

    Raises:
        InputError: for a file that cannot be loaded.
    """
    manager = PluginManager()
    for name, module in DEFAULT_PLUGINS.items():
        manager.register(importlib.import_module(module), name)
    manager.load_entry_points()
    manager.load_files()
    return manager


def _names(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {name.strip() for name in value.split(",") if name.strip()}


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""
