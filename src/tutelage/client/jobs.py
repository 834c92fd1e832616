"""Jobs: finding them, and the base class of custom ones.

Not here: one job (`job.py`), the built-in kinds (`builtin_jobs.py`), what runs leave (`runs.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tutelage.client.http import path_of
from tutelage.client.job import Job
from tutelage.client.mounting import upload_mounts
from tutelage.client.openweights_form import request_of
from tutelage.client.results import Explanation, decoded
from tutelage.config.faults import sentence_of
from tutelage.errors import ConfigError
from tutelage.jobs import records
from tutelage.jobs.kinds import JobRequest, checked

if TYPE_CHECKING:
    from tutelage.client.openweights import OpenWeights

MAX_PAGE = 1000
UNKNOWN_SCRIPT = ":"
OWN_OPTIONS = ("allowed_hardware", "docker_image", "cloud_type", "requires_vram_gb")
"""What `Jobs.create` takes beside the params of the job."""


class Jobs:
    """All jobs (`client.jobs`), and the base of custom ones: subclass it and `@register("name")` it.

    mount: file or folder here to its path in the job's folder. params: what `create` takes, checked. base_image: None
    runs in any worker's environment. requires_vram_gb: GPU memory, 0 for none.
    """

    mount: Mapping[str, str] = {}
    params: type[BaseModel] = BaseModel
    base_image: str | None = None
    requires_vram_gb: float | None = 24
    kind = ""
    """Of a built-in kind, its name."""

    def __init__(self, client: "OpenWeights") -> None:
        self._ow = client

    @property
    def id_predix(self) -> str:
        """What ids of these jobs begin with. The spelling is OpenWeights'."""
        return type(self).__name__.lower()

    def get_entrypoint(self, validated_params: Any) -> str:
        """The shell command of a job with these params. Subclasses have their own."""
        # The base class is `client.jobs` too, so it cannot be abstract.
        raise NotImplementedError(f"{type(self).__name__} needs get_entrypoint(self, validated_params) -> str")

    def create(self, **params: Any) -> Job:
        """Submit a job of this kind; the same one again is the one there is, reset if it failed or was canceled.

        params: for `self.params`; beside them allowed_hardware, docker_image, cloud_type, requires_vram_gb. Raises
        ConfigError and JobError before anything is uploaded.
        """
        options = {name: params.get(name) for name in OWN_OPTIONS}
        taken = [name for name in OWN_OPTIONS if name not in self.params.model_fields]
        own = {name: value for name, value in params.items() if name not in taken}
        try:
            validated = self.params(**own)
        except ValidationError as error:
            known = self.params.model_fields
            raise ConfigError(sentence_of(error, known=known, if_missing="add it to create(…)")) from error
        vram = options["requires_vram_gb"]
        request = JobRequest(
            kind="custom",
            params=validated.model_dump(mode="json"),
            prefix=self.id_predix,
            image=options["docker_image"] or self.base_image,
            entrypoint=self.get_entrypoint(validated),
            requires_vram_gb=(self.requires_vram_gb or 0) if vram is None else vram,
            allowed_hardware=options["allowed_hardware"],
            cloud_type=options["cloud_type"],
        )
        checked(request)
        return self.submit(replace(request, mounted_files=self._upload_mounted_files()))

    def submit(self, request: JobRequest) -> Job:
        """The job of a request, whose files have been uploaded. Raises ConfigError, JobError, NotFoundError."""
        timeout = records.moment(request.timeout_at)
        body = {
            "kind": request.kind,
            "params": dict(request.params),
            "prefix": request.prefix,
            "mounted_files": dict(request.mounted_files or {}),
            "image": request.image,
            "entrypoint": request.entrypoint,
            "requires_vram_gb": request.requires_vram_gb,
            "allowed_hardware": request.allowed_hardware,
            "cloud_type": request.cloud_type,
            "timeout": timeout and timeout.isoformat(),
        }
        return self._job(self._ow.http.request("POST", "/api/jobs", json=body))

    def get_or_create_or_reset(self, data: Mapping[str, Any]) -> Job:
        """Submit what OpenWeights' dict says: type, script, docker_image, requires_vram_gb, allowed_hardware,
        params={"validated_params", "mounted_files"}. An id in it is left aside but for its prefix."""
        return self.submit(request_of(data, self.kind, self._prefix, self.base_image))

    def compute_id(self, data: Mapping[str, Any], docker_image: str | None = None) -> str:
        """The id that the server gives the job of such a dict. Raises ConfigError and JobError.

        Without its script a custom job cannot be known; then it is some id that other params and files do not have.
        """
        request = request_of(data, self.kind, self._prefix, docker_image or self.base_image)
        if request.kind == "custom" and not request.entrypoint:
            request = replace(request, entrypoint=UNKNOWN_SCRIPT)
        return checked(request).id(self._ow.organization_id)

    def list(
        self,
        limit: int = 10,
        *,
        status: str | None = None,
        kind: str | None = None,
        search: str | None = None,
        after: str | None = None,
    ) -> list[Job]:
        """Jobs, newest first, those behind the job `after`. search: in id, model and params."""
        found: list[Job] = []
        while len(found) < limit:
            asked = {"status": status, "kind": kind, "search": search, "after": found[-1].id if found else after}
            asked["limit"] = str(min(limit - len(found), MAX_PAGE))
            page = self._ow.http.request("GET", "/api/jobs", params=asked)
            found += [self._job(item) for item in page["data"]]
            if not page.get("has_more") or not page["data"]:
                break
        return found

    def find(self, **params: Any) -> "list[Job]":
        """All jobs whose validated params contain these values, newest first; of dicts it is enough to name a part."""
        wanted = {**params, **(params.pop("validated_params", None) or {})}
        wanted.pop("validated_params", None)
        body: dict[str, Any] = {"params": wanted, "limit": MAX_PAGE}
        found: list[Job] = []
        while True:
            page = self._ow.http.request("POST", "/api/jobs/find", json=body)
            found += [self._job(item) for item in page["data"]]
            if not page.get("has_more") or not page["data"]:
                return found
            body["after"] = found[-1].id

    def retrieve(self, job_id: str) -> Job:
        """Raises NotFoundError."""
        return Job(self._ow, self.record(job_id))

    def record(self, job_id: str, *, patience: float | None = None) -> records.Job:
        """The bare record of a job. patience: see `Transport`."""
        answer = self._ow.http.request("GET", path_of("api", "jobs", job_id), patience=patience)
        return decoded(records.Job, answer)

    def cancel(self, job_id: str) -> Job:
        """Stop a job, whether it waits or runs. Raises JobError where it completed or failed already."""
        return self._job(self._ow.http.request("POST", path_of("api", "jobs", job_id, "cancel"), json={}))

    def restart(self, job_id: str) -> Job:
        """Let a job that has ended wait again; one that has not is left as it is."""
        return self._job(self._ow.http.request("POST", path_of("api", "jobs", job_id, "restart"), json={}))

    def set_timeout(self, job_id: str, timeout: datetime | None) -> Job:
        """When the job is canceled if it still runs; None, never."""
        body = {"timeout": timeout and timeout.isoformat()}
        return self._job(self._ow.http.request("PATCH", path_of("api", "jobs", job_id), json=body))

    def explain(self, job_id: str) -> Explanation:
        """Why a job waits: for each worker, the conditions that fail."""
        answer = self._ow.http.request("GET", path_of("api", "jobs", job_id, "explain"))
        return decoded(Explanation, answer)

    @property
    def _org_id(self) -> str:
        """What subclasses written for OpenWeights ask for."""
        return self._ow.organization_id

    @property
    def _prefix(self) -> str | None:
        return None if type(self) is Jobs else self.id_predix

    def _job(self, answer: Any) -> Job:
        return Job(self._ow, decoded(records.Job, answer))

    def _upload_mounted_files(self, extra_files: Mapping[str, str] | None = None) -> dict[str, str]:
        """Upload what is mounted: path in the job's folder to file id."""
        return upload_mounts(self._ow.files, {**self.mount, **(extra_files or {})})
