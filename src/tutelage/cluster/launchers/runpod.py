"""Pods of RunPod, each with a worker that pulls jobs over HTTPS until it is stopped or has had none for long.

A pod carries in its environment which machine of which cluster it is, so that every manager finds all of them. Not
here: what a pod is given and runs.
"""

import json
import logging
import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast
from urllib.parse import urlsplit

import requests

from tutelage.cluster.launchers.pods import RunPodOptions, arguments, found_of, pod_hardware
from tutelage.cluster.launchers.protocol import Found, LauncherError, NoCapacityError, Order
from tutelage.cluster.settings import ClusterSettings
from tutelage.config.faults import checked
from tutelage.errors import ConfigError
from tutelage.jobs.masks import MASK, maskable


def _imported() -> Any:
    """RunPod's package. Importing it has everything logged to standard error, which is undone.

    It is typed as Any, since it has no types. Each of its calls ends after 30 s without a byte.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    found: Any = import_module("runpod")
    root.handlers[:] = handlers
    root.setLevel(level)
    return found


runpod = _imported()

_API_VARIABLE = "RUNPOD_API_BASE_URL"
"""Of the package: where RunPod is, if it is not RunPod's own."""
UNLISTED_SECONDS = 60.0
"""How long a pod that was just created may be missing from RunPod's list."""
_BUSY = re.compile(r"too many requests|rate.?limit|something went wrong|internal (server )?error", re.IGNORECASE)
"""How a service says that it is not the order it refuses."""


@dataclass(frozen=True)
class _Known:
    """A machine that was started or seen, and its pods: more than one, if a call was answered by two."""

    found: Found
    pods: tuple[str, ...]
    listed: bool


class RunPodLauncher:
    """Pods of one cluster. Raises ConfigError for options that are none, and where there is no API key."""

    one_job = False

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._options = options = checked(RunPodOptions, settings.options, "options")
        self._hardware = {
            entry.name: pod_hardware(entry, interruptible=options.interruptible) for entry in settings.hardware
        }
        written: dict[str, str] | None = runpod.get_credentials()  # by the command `runpod config`
        self._key = os.environ.get(options.api_key_variable) or (written or {}).get("api_key", "")
        if not self._key:
            raise ConfigError(
                f"launcher: runpod needs an API key; set {options.api_key_variable} in the manager's environment"
            )
        self._known: dict[str, _Known] = {}

    def found(self) -> list[Found]:
        """See `Launcher`. A pod that is gone though nobody stopped it has ended."""
        listed = self._listed()
        for machine_id, known in self._known.items():
            if machine_id in listed:
                continue
            if known.listed or time.time() - known.found.started_at > UNLISTED_SECONDS:
                known = replace(known, found=replace(known.found, ended="its pod is gone"))
            listed[machine_id] = known
        self._known = listed
        return [known.found for known in listed.values()]

    def start(self, order: Order) -> None:
        """See `Launcher`. Raises ConfigError for an address of the server that no pod reaches."""
        where = urlsplit(order.url).hostname or ""
        if (where in ("localhost", "::1") or where.startswith("127.")) and _API_VARIABLE not in os.environ:
            raise ConfigError(f"url: {order.url} is this machine itself, which no pod reaches; give the server's 'url'")
        hardware = self._hardware[order.start.tier.hardware]
        given = arguments(order, self._settings, self._options, hardware, time.time())
        with self._answering(f"create a pod for {order.start.tier}", order.token, NoCapacityError):
            pod = self._create(given, hardware.bid_per_gpu)
            if pod is None:
                raise NoCapacityError("RunPod gives no machine for it")
            known = {"env": [f"{name}={value}" for name, value in given["env"].items()]}
            found = found_of(known, self._settings.name)
            assert found is not None  # it has our tags
            self._known[order.machine_id] = _Known(found, (pod["id"],), listed=False)

    def stop(self, machine_id: str) -> None:
        """See `Launcher`."""
        if machine_id not in self._known:
            self.found()
        known = self._known.get(machine_id)
        if known is not None:
            for pod in known.pods:
                self._terminate(pod)
            del self._known[machine_id]

    def close(self) -> None:
        """See `Launcher`."""

    # --- calls ----------------------------------------------------------------------------------------------------

    def _create(self, given: Mapping[str, Any], bid_per_gpu: float | None) -> Any:
        """The pod, or None for none."""
        if self._options.interruptible:
            query = spot_mutation(given, bid_per_gpu)
            answer: Any = import_module("runpod.api.graphql").run_graphql_query(query)
            return answer["data"]["podRentInterruptable"]
        try:
            return runpod.create_pod(**{name: _escaped(value) for name, value in given.items()})
        except ValueError as error:
            if isinstance(error, requests.RequestException):
                raise
            # That is how the package says that RunPod does not know the GPU. Others of the catalogue can be had.
            raise NoCapacityError(
                f"RunPod refuses it ({error}); mend 'gpu_type' '{given.get('gpu_type_id')}' in the catalogue"
            ) from error

    def _listed(self) -> dict[str, _Known]:
        with self._answering("list the pods"):
            pods: list[dict[str, Any]] = runpod.get_pods()
            listed: dict[str, _Known] = {}
            for pod in pods:
                found = found_of(pod, self._settings.name)
                if found is None or pod.get("desiredStatus") == "TERMINATED":
                    continue
                before = listed.get(found.machine_id)
                others = before.pods if before is not None else ()
                listed[found.machine_id] = _Known(found, (*others, pod["id"]), listed=True)
            return listed

    def _terminate(self, pod: str) -> None:
        try:
            with self._answering(f"terminate the pod {pod}"):
                runpod.terminate_pod(pod)
        except LauncherError as error:
            # RunPod refuses to terminate what is gone, which is no error here.
            if any(pod in known.pods for known in self._listed().values()):
                raise error from None

    @contextmanager
    def _answering(
        self, what: str, secret: str = "", refused: type[LauncherError] = LauncherError
    ) -> Generator[None, None, None]:
        """Whatever the package raises, as a LauncherError without API key and secret. what: is asked of RunPod.
        refused: where it says no to this."""
        runpod.api_key = self._key
        where = os.environ.get(_API_VARIABLE, "https://api.runpod.io")
        try:
            yield
        except LauncherError:
            raise
        except runpod.error.AuthenticationError:
            raise LauncherError(
                f"RunPod at {where} does not take the API key in {self._options.api_key_variable}; give one that may "
                f"read and write pods"
            ) from None
        except runpod.error.QueryError as error:
            kind = LauncherError if _BUSY.search(str(error)) else refused
            refusal = f"RunPod at {where} refuses to {what}: {self._masked(error, secret)}"
            raise kind(refusal) from None  # the error has the whole query with the token
        except requests.JSONDecodeError as error:
            said = self._masked(" ".join(error.doc.split())[:100] or "nothing", secret)
            raise LauncherError(
                f"RunPod at {where} could not {what}: it says '{said}' where JSON should be, as when it is asked too "
                f"often or is down"
            ) from None
        except requests.RequestException as error:
            raise LauncherError(
                f"RunPod at {where} gave no answer when it was asked to {what} ({self._masked(error, secret)}); look "
                f"at the network"
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise LauncherError(
                f"RunPod at {where} gave an answer that makes no sense when it was asked to {what} "
                f"({self._masked(repr(error), secret)})"
            ) from None

    def _masked(self, text: object, secret: str) -> str:
        masked = str(text)[:300]
        for hidden in maskable([self._key, secret]):
            masked = masked.replace(hidden, MASK)
        return masked


def spot_mutation(given: Mapping[str, Any], bid_per_gpu: float | None) -> str:
    """What `runpod.create_pod` would send with these arguments, for a spot machine, for which it has nothing."""
    fields = {"bidPerGpu": json.dumps(bid_per_gpu)}
    for name, value in given.items():
        first, *words = name.split("_")
        fields[first + "".join(word.capitalize() for word in words)] = _literal(name, value)
    content = ", ".join(f"{name}: {value}" for name, value in fields.items())
    return f"mutation {{ podRentInterruptable(input: {{ {content} }}) {{ id costPerHr machineId }} }}"


def _literal(name: str, value: Any) -> str:
    """In GraphQL, where texts are written as in JSON and names of an enumeration without quotes."""
    if name == "cloud_type":
        return value
    if name == "env":
        pairs = (f"{{ key: {json.dumps(key)}, value: {json.dumps(one)} }}" for key, one in value.items())
        return f"[{', '.join(pairs)}]"
    return json.dumps(value)


def _escaped(value: Any) -> Any:
    """As `runpod.create_pod` needs it, which puts texts between quotes as they are: they end in texts of GraphQL."""
    if isinstance(value, str):
        return json.dumps(value)[1:-1]
    if isinstance(value, dict):
        texts = cast("dict[str, str]", value)
        return {_escaped(key): _escaped(text) for key, text in texts.items()}
    return value
