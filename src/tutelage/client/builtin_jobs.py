"""The built-in kinds of jobs, as attributes of a client: `client.fine_tuning.create(…)`.

What may be wrong with options is found out here, before a file is uploaded; the server checks again. Not here:
deploying a model (`deployments.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from tutelage.client.guessing import guessed_vram_gb
from tutelage.client.job import Job
from tutelage.client.jobs import Jobs
from tutelage.client.local_files import TRAINING, reward_mounts, unchecked_id, with_file_ids
from tutelage.client.mounting import MOUNTED_AS
from tutelage.client.openweights_form import TRAINED, without_result
from tutelage.errors import ConfigError
from tutelage.jobs.kinds import KINDS, JobRequest, checked

Vram = float | Literal["guess"]
GUESS: Literal["guess"] = "guess"


class BuiltInJobs(Jobs):
    """Base of the built-in kinds. extra_gb: what a guess adds to the weights."""

    extra_gb = 15.0

    @property
    def id_predix(self) -> str:
        return KINDS[self.kind].prefix

    def _create(
        self,
        options: Mapping[str, Any],
        requires_vram_gb: Vram,
        allowed_hardware: list[str] | None,
        docker_image: str | None,
        cloud_type: str,
    ) -> Job:
        """Check the options, upload the files of this machine in them, submit. Raises ConfigError and JobError."""
        kind, mounts = KINDS[self.kind], {}
        if self.kind in TRAINING:
            options, mounts = reward_mounts(without_result(options))
        request = JobRequest(
            kind=self.kind,
            params=with_file_ids(self.kind, kind.files, options, unchecked_id),
            image=docker_image or self.base_image,
            allowed_hardware=allowed_hardware,
            cloud_type=cloud_type,
        )
        vram = self._vram(requires_vram_gb, allowed_hardware, checked(request).params)
        checked(replace(request, requires_vram_gb=vram))
        files = self._ow.files
        return self.submit(
            replace(
                request,
                params=with_file_ids(
                    self.kind, kind.files, options, lambda path, purpose: files.upload(path, purpose).id
                ),
                mounted_files={target: files.upload(path, MOUNTED_AS).id for target, path in mounts.items()},
                requires_vram_gb=vram,
            )
        )

    def _vram(self, given: Vram, allowed_hardware: list[str] | None, params: Mapping[str, Any]) -> float:
        if not isinstance(given, str):
            return given
        if given != GUESS:
            raise ConfigError(f"requires_vram_gb: '{given}' is no number; give gigabytes, or 'guess'")
        if allowed_hardware is not None:
            return 0  # who names the hardware knows what fits
        return guessed_vram_gb(self._untrained(str(params["model"])), **self._guess(params))

    def _guess(self, params: Mapping[str, Any]) -> dict[str, float]:
        return {"extra_gb": self.extra_gb}

    def _untrained(self, model: str) -> str:
        """The name of the model that was trained, and trained on, to the one that `model` is."""
        while (trained := TRAINED.match(model)) is not None:
            model = str(self._ow.jobs.record(trained[0]).params["model"])
        return model


class FineTuning(BuiltInJobs):
    """`client.fine_tuning`: training with any objective."""

    kind = "fine_tuning"

    def create(
        self,
        requires_vram_gb: Vram = 24,
        allowed_hardware: list[str] | None = None,
        docker_image: str | None = None,
        cloud_type: str = "SECURE",
        **options: Any,
    ) -> Job:
        """Submit a training run. options: those of `TrainingConfig`; files by id, or as paths of this machine.

        Raises ConfigError, before anything is uploaded, for options that cannot work, JobError for bad rows.
        """
        return self._create(options, requires_vram_gb, allowed_hardware, docker_image, cloud_type)

    def _guess(self, params: Mapping[str, Any]) -> dict[str, float]:
        # Weights, gradients and Adam's two moments where every weight is trained.
        size = 2.0 if params["is_peft"] else 16.0
        return {"extra_gb": self.extra_gb, "bytes_per_parameter": size}


class WeightedSft(FineTuning):
    """`client.weighted_sft`: training on rows whose tokens have weights."""

    kind = "weighted_sft"

    def create(
        self,
        requires_vram_gb: Vram = GUESS,
        allowed_hardware: list[str] | None = None,
        docker_image: str | None = None,
        cloud_type: str = "SECURE",
        **options: Any,
    ) -> Job:
        """See `FineTuning.create`."""
        return self._create(options, requires_vram_gb, allowed_hardware, docker_image, cloud_type)


class AsksModel(BuiltInJobs):
    """Base of the kinds that ask a model about a file."""

    def create(
        self,
        requires_vram_gb: Vram = GUESS,
        allowed_hardware: list[str] | None = None,
        docker_image: str | None = None,
        cloud_type: str = "SECURE",
        **options: Any,
    ) -> Job:
        """Submit one. options: those of its class in `tutelage.jobs.params`; files by id, or as paths of this machine.

        Raises ConfigError, before anything is uploaded, for options that cannot work, JobError for bad rows.
        """
        return self._create(options, requires_vram_gb, allowed_hardware, docker_image, cloud_type)


class Inference(AsksModel):
    """`client.inference`: answers to the prompts of a file."""

    kind = "inference"


class LogProb(AsksModel):
    """`client.logprob`: log-probabilities of the answers in a file."""

    kind = "logprob"


class MultipleChoice(AsksModel):
    """`client.multiple_choice`: questions with choices, answered by log-probability."""

    kind = "multiple_choice"


class InspectAi(AsksModel):
    """`client.inspect_ai`: a task of Inspect."""

    kind = "inspect_ai"
    extra_gb = 44.0
    """With the 60 GB that OpenWeights asks for a model of 8 billion parameters in mind."""
