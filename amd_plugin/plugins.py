"""Finding plugins without being taken down by them.

`get_plugin_manager()` registers the host's own baseline and every entry point of group ``distill_host``. A plugin that
cannot be imported, has a wrong signature, takes a taken name or raises in a hook is set aside with its cause; the rest
carry on. `AMD_PLUGIN_LOAD` (comma-separated; empty = none) names the only entry points to load, `AMD_PLUGIN_DISABLE`
those to leave out.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pluggy

from amd_plugin import hookspecs
from amd_plugin.contract import CHECKS, objective_problem
from amd_plugin.errors import AmdPluginError, InputError, did_you_mean
from amd_plugin.hookspecs import NAME, Objective

log = logging.getLogger(__name__)

# By dotted name: the registry imports no host. `amd` comes in by its entry point, as a third party's plugin does.
DEFAULT_PLUGINS = {"host": "amd_plugin.default_plugins.host"}


@dataclass
class PluginStatus:
    """One line of `amd-plugin plugins`.

    Attributes:
        name: entry-point name, or the name it was registered under.
        distribution: the installed package and version it comes from; empty if registered by hand.
        status: ``active``, ``disabled`` (by the environment) or ``failed``.
        hooks: the hooks it implements.
        cause: why it failed, or what is odd about it.
    """

    name: str
    distribution: str = ""
    status: str = "active"
    hooks: list[str] = field(default_factory=list)
    cause: str = ""
    error: BaseException | None = field(default=None, repr=False)


class PluginManager(pluggy.PluginManager):
    """pluggy's manager, whose hook calls survive a plugin that raises.

    Attributes:
        statuses: what became of every plugin seen, by name.
    """

    def __init__(self) -> None:
        super().__init__(NAME)
        self.statuses: dict[str, PluginStatus] = {}
        self.add_hookspecs(hookspecs)

    def register(self, plugin: object, name: str | None = None, distribution: str = "") -> str | None:
        """Adds a plugin by hand; same rules as for entry points, so a broken one is set aside and not raised.

        Returns:
            Its name; None if it failed or is blocked, see `statuses`.
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
        allowed, denied = _names("AMD_PLUGIN_LOAD"), _names("AMD_PLUGIN_DISABLE") or set()
        found = importlib.metadata.entry_points(group=NAME)
        # Ours first: whoever comes later cannot take the names we document.
        for name in sorted((allowed or set()) - {point.name for point in found}):
            log.warning("AMD_PLUGIN_LOAD: no plugin is called '%s'.%s", name, did_you_mean(name, (p.name for p in found)))
        for point in sorted(found, key=lambda p: (not p.value.startswith("amd_plugin."), _distribution(p), p.name)):
            if point.name in denied or (allowed is not None and point.name not in allowed):
                variable = "AMD_PLUGIN_DISABLE" if point.name in denied else "AMD_PLUGIN_LOAD"
                self.statuses[point.name] = PluginStatus(point.name, _distribution(point), "disabled", cause=f"by {variable}")
                continue
            if point.name in self.statuses:
                taken = PluginStatus(point.name, _distribution(point))
                self.statuses[f"{point.name} ({taken.distribution})"] = taken
                self._fail(f"{point.name} ({taken.distribution})", InputError(f"another plugin is called '{point.name}'"))
                continue
            try:
                self.register(point.load(), point.name, _distribution(point))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.statuses[point.name] = PluginStatus(point.name, _distribution(point))
                self._fail(point.name, error)

    def objectives(self) -> dict[str, Callable[..., Objective]]:
        """Every objective by name, from all plugins, with its factory."""
        return self._catalogue()["distill_objectives"]

    def rewards(self) -> dict[str, Callable[..., Any]]:
        """Every reward by name, from all plugins, with its factory."""
        return self._catalogue()["distill_rewards"]

    def families(self) -> dict[str, type[Any]]:
        """Every family of pipelines by the pipeline's class name, from all plugins."""
        families: dict[str, type[Any]] = self._catalogue()["distill_families"]  # type: ignore[assignment]
        return families

    def objective_factory(self, name: str) -> Callable[..., Objective]:
        """The factory of objective `name`.

        Raises:
            InputError: if there is none; says what there is, and why plugins that failed did so.
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
            made: Objective = self.hook.distill_make_objective(name=name, factory=factory, options=dict(options or {}))
        except AmdPluginError:
            raise
        except Exception as error:
            raise InputError(f"objective '{name}' could not be built: {type(error).__name__}: {error}") from error
        if problem := objective_problem(made):
            raise InputError(
                f"objective '{name}' is a {type(made).__name__} {problem}: not an Objective (amd_plugin.hookspecs)"
            )
        return made

    def _watch(self, plugin: object, status: PluginStatus) -> None:
        """Wraps the plugin's hooks so that an exception sets it aside, and reports hook names nobody calls."""
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
                if not str(getattr(plugin, "__name__", "")).startswith("amd_plugin."):  # ours may raise InputError
                    guarded = self._isolated(implementation.function, caller.name, status.name)
                    # pluggy has no hook around a single implementation; the attribute is what it calls.
                    implementation.function = guarded  # type: ignore[misc]
        status.hooks.sort()

    def _isolated(self, function: Callable[..., Any], hook: str, name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any) -> Any:
            if self.statuses[name].status == "failed":
                return None
            try:
                result = function(*args)
                if result is not None and hook in CHECKS:
                    CHECKS[hook](result)
                return result
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._fail(name, error, where=f"in {hook}: ")
                return None

        return guarded

    def _fail(self, name: str, error: BaseException, where: str = "") -> None:
        status = self.statuses[name]
        status.status, status.error = "failed", error
        status.cause = f"{where}{type(error).__name__}: {error}"
        log.warning("plugin %s is set aside: %s", name, status.cause)

    def _catalogue(self) -> dict[str, dict[str, Callable[..., Any]]]:
        """All that is found by name. A plugin that claims a taken name loses all of its own, whichever is asked for."""
        catalogue: dict[str, dict[str, Any]] = {"distill_objectives": {}, "distill_rewards": {}, "distill_families": {}}
        owners: dict[tuple[str, str], str] = {}
        # pluggy calls the last registered first; a name goes to the first registered.
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
                catalogue[hook].update(names)
                owners.update({(hook, name): plugin for name in names})
        return catalogue

    def _find(self, kind: str, name: str, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
        if name in known:
            return known[name]
        lines = [f"unknown {kind} '{name}'.{did_you_mean(name, known)} There are: {', '.join(sorted(known))}."]
        lines += [
            f"Plugin {s.name} {s.status}, which may have provided it: {s.cause}"
            for s in self.statuses.values()
            if s.status != "active"
        ]
        error = InputError("\n".join(lines))
        error.__cause__ = next((s.error for s in self.statuses.values() if s.error is not None), None)
        raise error


def get_plugin_manager() -> PluginManager:
    """A new manager with the host's baseline and all installed plugins in it."""
    manager = PluginManager()
    for name, module in DEFAULT_PLUGINS.items():
        manager.register(importlib.import_module(module), name)
    manager.load_entry_points()
    return manager


def _names(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {name.strip() for name in value.split(",") if name.strip()}


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else ""
