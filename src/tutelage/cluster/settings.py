"""`cluster.yaml`: what may be started, within which limits. Not here: what a launcher does with its own options."""

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tutelage.cluster.records import LADDER_SECONDS, Hardware, Limits
from tutelage.config.faults import checked
from tutelage.config.yaml_files import read_yaml
from tutelage.errors import ConfigError
from tutelage.jobs.requirements import CloudType, hardware_of

Seconds = Annotated[float, Field(gt=0, le=1e6)]
Dollars = Annotated[float, Field(ge=0, le=1e6)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HardwareEntry(_File):
    """One line of the catalogue.

    name: as jobs ask for it, `2x A100` or `cpu`. vram_gb: of all its GPUs. secure, community: US dollars an hour; leave
    out what is not to be had. most: how many at once. ignore_vram: its workers take jobs whatever memory they ask for.
    launcher: what the launcher has to know of it, such as `gpu_type` for RunPod.
    """

    name: str
    vram_gb: Annotated[float, Field(ge=0)] = 0.0
    secure: Dollars | None = None
    community: Dollars | None = None
    most: Annotated[int, Field(ge=0)] | None = None
    ignore_vram: bool = False
    launcher: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _is_hardware(cls, name: str) -> str:
        try:
            return hardware_of(name)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _has_a_price(self) -> "HardwareEntry":
        if self.secure is None and self.community is None:
            raise ValueError(f"{self.name} has no price; give 'secure', 'community' or both in dollars an hour, or 0")
        return self

    def hardware(self) -> Hardware:
        """As the plan has it."""
        prices = {CloudType.SECURE: self.secure, CloudType.COMMUNITY: self.community}
        return Hardware(
            self.name,
            {cloud_type: price for cloud_type, price in prices.items() if price is not None},
            vram_gb=self.vram_gb,
            most=self.most,
            ignore_vram=self.ignore_vram,
        )


class ClusterSettings(_File):
    """The keys of the file. The limits are those of `tutelage.cluster.records.Limits`.

    name: of the cluster; machines and tokens are called after it, so that a manager finds those of one before.
    launcher: `local`, `ray` or `runpod`. url: of the server, as machines reach it; unset, as the manager does.
    default_image: for jobs that name none. round_seconds: between two plans. options: of the launcher.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    launcher: str
    hardware: Annotated[list[HardwareEntry], Field(min_length=1)]
    max_workers: Annotated[int, Field(ge=1, le=10_000)]
    max_per_group: Annotated[int, Field(ge=1)] | None = None
    max_cost_per_hour: Dollars | None = None
    max_cost: Dollars | None = None
    idle_seconds: Seconds = Limits.idle_seconds
    start_seconds: Seconds = Limits.start_seconds
    silent_seconds: Seconds = Limits.silent_seconds
    ladder: Annotated[list[Seconds], Field(min_length=1)] = list(LADDER_SECONDS)
    round_seconds: Seconds = 10.0
    url: str | None = None
    default_image: str | None = None
    options: dict[str, Any] = {}

    @field_validator("hardware")
    @classmethod
    def _is_named_once(cls, entries: list[HardwareEntry]) -> list[HardwareEntry]:
        names = [entry.name for entry in entries]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is there twice; one line a piece of hardware")
        return entries

    def limits(self, *, one_job: bool) -> Limits:
        """As the plan has them. one_job: see there."""
        return Limits(
            hardware=tuple(entry.hardware() for entry in self.hardware),
            max_workers=self.max_workers,
            max_per_group=self.max_per_group,
            max_cost_per_hour=self.max_cost_per_hour,
            max_cost=self.max_cost,
            idle_seconds=self.idle_seconds,
            start_seconds=self.start_seconds,
            silent_seconds=self.silent_seconds,
            ladder=tuple(self.ladder),
            one_job=one_job,
        )

    def entry(self, name: str) -> HardwareEntry:
        """The line of the catalogue with this name."""
        return next(entry for entry in self.hardware if entry.name == name)


def load_cluster(path: Path) -> ClusterSettings:
    """The settings in a file. Raises ConfigError: place, value, remedy."""
    content: object = read_yaml(path, "cluster")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no mapping; give 'name', 'launcher', 'hardware' and 'max_workers'")
    return checked(ClusterSettings, cast("dict[str, Any]", content), str(path))
