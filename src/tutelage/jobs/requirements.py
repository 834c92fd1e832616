"""What a job asks of a worker, what a worker offers, and why the two do not fit: one function for claims,
`explain` and the planning of machines. Not here: SQL."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from tutelage.errors import ConfigError, nearest
from tutelage.jobs.identity import HEX_DIGITS, canonical_json
from tutelage.jobs.plain_json import cleaned_text


class CloudType(str, Enum):
    """Whose machines may run a job, and whose machine a worker is."""

    SECURE = "SECURE"
    COMMUNITY = "COMMUNITY"
    ALL = "ALL"
    """Of jobs only: either will do."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Requirement:
    """Conditions on the worker. None of them is part of a job's identity but the image.

    image: container image the job must run in; None, any worker's. allowed_hardware: such as `2x A100`; None, any.
    requires_vram_gb: gigabytes of memory over all GPUs of the worker.
    """

    image: str | None = None
    allowed_hardware: tuple[str, ...] | None = None
    requires_vram_gb: float = 0
    cloud_type: CloudType = CloudType.SECURE

    @property
    def id(self) -> str:
        """Equal conditions have the same one."""
        return hashlib.sha256(canonical_json(self.as_json()).encode()).hexdigest()[:HEX_DIGITS]

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        return {
            "image": self.image,
            "allowed_hardware": sorted(self.allowed_hardware) if self.allowed_hardware is not None else None,
            "requires_vram_gb": self.requires_vram_gb,
            "cloud_type": self.cloud_type.value,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Requirement":
        """Back from `as_json`."""
        hardware = values["allowed_hardware"]
        return cls(
            image=values["image"],
            allowed_hardware=tuple(hardware) if hardware is not None else None,
            requires_vram_gb=values["requires_vram_gb"],
            cloud_type=CloudType(values["cloud_type"]),
        )


@dataclass(frozen=True)
class Offer:
    """What a worker has.

    hardware: number and name of its GPUs, such as `2x A100`, or `cpu`. vram_gb: over all of them. images: container
    images it stands for; None, it runs jobs in its own environment whatever image they name, as a worker on a
    laptop does. cached_models: those it need not load from elsewhere.
    """

    hardware: str = "cpu"
    gpus: int = 0
    vram_gb: float = 0.0
    cloud_type: CloudType = CloudType.SECURE
    images: tuple[str, ...] | None = None
    cached_models: tuple[str, ...] = field(default=())
    ignore_vram: bool = False
    """Take jobs whatever memory they ask for: a machine without a GPU that is meant to run small models."""

    def as_json(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        return asdict(self) | {"cloud_type": self.cloud_type.value}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Offer":
        """Back from `as_json`."""
        images = values["images"]
        changed: dict[str, Any] = {
            "cloud_type": CloudType(values["cloud_type"]),
            "images": tuple(images) if images is not None else None,
            "cached_models": tuple(values["cached_models"]),
        }
        return cls(**{**values, **changed})


def misfits(requirement: Requirement, offer: Offer) -> list[str]:
    """Why a worker may not run a job, one sentence for each condition that fails; empty where it may."""
    reasons: list[str] = []
    if requirement.image is not None and offer.images is not None and requirement.image not in offer.images:
        reasons.append(f"it needs the image {requirement.image}, the worker has {', '.join(offer.images) or 'none'}")
    allowed = requirement.allowed_hardware
    if allowed is not None and offer.hardware not in allowed:
        reasons.append(f"it needs {' or '.join(allowed) or 'no hardware at all'}, the worker has {offer.hardware}")
    if requirement.requires_vram_gb > offer.vram_gb and not offer.ignore_vram:
        reasons.append(
            f"it needs {requirement.requires_vram_gb:g} GB of GPU memory, the worker has {offer.vram_gb:g} GB"
        )
    if requirement.cloud_type not in (CloudType.ALL, offer.cloud_type):
        reasons.append(f"it needs a {requirement.cloud_type.value} machine, the worker is {offer.cloud_type.value}")
    return reasons


def cloud_type_of(value: str, *, of_worker: bool = False) -> CloudType:
    """By its name in any case. Raises ConfigError."""
    names = [known.value for known in CloudType if not (of_worker and known is CloudType.ALL)]
    if value.upper() not in names:
        raise ConfigError(f"cloud_type: '{value}' is none{nearest(value.upper(), names)}; one of {', '.join(names)}")
    return CloudType(value.upper())


_COUNT = re.compile(r"^(\d+)(?:\s*x\s*|\s+)(\S.*)$", re.IGNORECASE)


def hardware_of(value: str) -> str:
    """`2x A100`, however the number is written (`2 A100`, `2X  A100`); a name alone is one of them.

    Raises ConfigError for none and for no name.
    """
    text = " ".join(cleaned_text(value).split())
    if text.lower() == "cpu":
        return "cpu"
    match = _COUNT.match(text)
    count, name = (int(match[1]), match[2]) if match else (1, text)
    if count < 1 or not name:
        raise ConfigError(f"allowed_hardware: '{value}' is no number and name of GPUs; write '1x A100', or 'cpu'")
    return f"{count}x {name.upper()}"
