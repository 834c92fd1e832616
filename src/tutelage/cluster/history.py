"""What a manager remembers beyond its own life, in a file: starts that failed, money that was spent."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.cluster.records import Failures, Tier
from tutelage.errors import ConfigError
from tutelage.files import write_json
from tutelage.jobs.requirements import CloudType


@dataclass
class History:
    """failures: by tier. spent: US dollars by all machines of the cluster. counted_until: up to when."""

    failures: dict[Tier, Failures] = field(default_factory=dict[Tier, Failures])
    spent: float = 0.0
    counted_until: float | None = None

    def failed(self, tier: Tier, now: float) -> None:
        """A start of this tier failed. Several in one round are one step up the ladder: they say the same."""
        before = self.failures.get(tier)
        if before is not None and before.last_at == now:
            return
        self.failures[tier] = Failures(before.times + 1 if before is not None else 1, now)

    def just_failed(self, tier: Tier, now: float) -> bool:
        """Whether it was in this round, whose plan does not know of it yet."""
        return tier in self.failures and self.failures[tier].last_at == now

    def started(self, tier: Tier) -> None:
        """A machine of this tier is there: it does not rest any more."""
        self.failures.pop(tier, None)

    def count(self, per_hour: float, now: float) -> None:
        """What all machines cost together, since it was counted last."""
        if self.counted_until is not None and now > self.counted_until:
            self.spent += per_hour * (now - self.counted_until) / 3600
        self.counted_until = now

    def save(self, path: Path) -> None:
        """Raises OutputError."""
        failures = [[*tier, *failed] for tier, failed in self.failures.items()]
        write_json(path, {"spent": self.spent, "counted_until": self.counted_until, "failures": failures})


def load_history(path: Path) -> History:
    """An empty one where there is no file. Raises ConfigError for one that cannot be read."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return History()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); mend it, or delete it: spending is counted anew"
        ) from error
    try:
        failures = {
            Tier(hardware, CloudType(cloud_type)): Failures(int(count), float(last_at))
            for hardware, cloud_type, count, last_at in content["failures"]
        }
        return History(failures, float(content["spent"]), content["counted_until"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: is no history of a cluster ({error!r}); delete it: spending is counted anew"
        ) from error
