"""A manager of machines in a thread of the test, between a real server and a real launcher."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

from tests import workers
from tests.served import Served
from tutelage.client import OpenWeights
from tutelage.cluster.manager import Manager
from tutelage.cluster.opening import open_launcher
from tutelage.cluster.settings import ClusterSettings
from tutelage.jobs.records import Scope

PATIENCE = 120.0
"""Seconds for what several processes have to start or end for."""
ended = partial(workers.ended, patience=PATIENCE)
word = partial(workers.word, patience=PATIENCE)


class Managed:
    """values: of `cluster.yaml`. said: what people were told."""

    def __init__(self, server: Served, folder: Path, values: dict[str, Any]) -> None:
        settings = ClusterSettings.model_validate(values)
        self.said: list[str] = []
        self.client = OpenWeights(base_url=server.url, auth_token=server.token(Scope.ADMIN))
        self.launcher = open_launcher(settings, folder)
        self.manager = Manager(settings, self.launcher, self.client, folder, say=self.said.append)
        self._name = settings.name
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.manager.run, args=(self._stop.wait,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; machines stay."""
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """End, and leave nothing at the launcher."""
        self.stop()
        self.manager.stop_all()

    def names_of_tokens(self) -> list[str]:
        """Of machines that may still come in."""
        tokens = self.client.tokens.list()
        return [token.name for token in tokens if token.revoked_at is None and token.name.startswith(f"{self._name}-")]
