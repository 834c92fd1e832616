"""`tutelage jobs submit` and `tutelage exec`: jobs of every kind, and waiting for them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.choices import require_known
from tutelage.cli.connection import connect
from tutelage.cli.jobs import app as jobs_app
from tutelage.cli.jobs import follow_log
from tutelage.cli.output import Json, print_json, print_part
from tutelage.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from tutelage.client import Job

Hardware = Annotated[
    list[str] | None, typer.Option(metavar="GPUS", help="Such as '1x A100'; may be repeated. Unset, any.")
]
CloudType = Annotated[str, typer.Option(help="SECURE, COMMUNITY or ALL: whose machines may run it.")]
Vram = Annotated[
    float | None,
    typer.Option(min=0, help="Gigabytes of GPU memory; unset, 24 for fine_tuning, else guessed by the model."),
]
OwnVram = Annotated[float, typer.Option(min=0, help="Gigabytes of GPU memory; 0 needs no GPU.")]
Image = Annotated[str | None, typer.Option(help="Container image; unset, any worker's own environment.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show its log until it ends; exit code 1 unless it completed.")]

TRAINING = ("fine_tuning", "weighted_sft")
KIND = "fine_tuning"
EVERY_STEP = "eval_every_n_steps"
FILE_REMARK = "a YAML file of the options of that kind"


def register(root: typer.Typer, panel: str) -> None:
    """Add the commands."""
    jobs_app.command()(submit)
    # Whatever stands behind the command's first word is the command's own.
    settings = {"allow_interspersed_args": False}
    root.command("exec", context_settings=settings, no_args_is_help=True, rich_help_panel=panel)(execute)


def submit(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="A YAML file of options: of `tutelage train`, or of another --kind."),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="fine_tuning, weighted_sft, inference, logprob, multiple_choice, inspect_ai or api.")
    ] = KIND,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set or override an option; may be repeated."),
    ] = None,
    requires_vram_gb: Vram = None,
    allowed_hardware: Hardware = None,
    cloud_type: CloudType = "SECURE",
    image: Image = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Submit a job, and upload the files of this machine that its options name.

    Train:   tutelage jobs submit config.yaml --wait

    Ask:     tutelage jobs submit --kind inference --set model=JOB --set input_file_id=prompts.jsonl

    Serve:   tutelage jobs submit --kind api --set model=JOB, then: tutelage chat JOB
    """
    kind = _known_kind(kind)
    if config is None and not overrides:
        raise ConfigError(f"no options given; name {FILE_REMARK}, or write --set key=value")
    options = (_training_options if kind in TRAINING else _options_of)(kind, config, overrides or [])
    placing = _placing(requires_vram_gb, allowed_hardware, cloud_type, image)
    _submitted(getattr(connect(), kind).create(**options, **placing), wait, as_json)


def execute(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="Best behind --, with its arguments.")],
    mount: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE[:TARGET]",
            help="A file or folder here, and where it is to be in the job's folder; may be repeated.",
        ),
    ] = None,
    requires_vram_gb: OwnVram = 0,
    allowed_hardware: Hardware = None,
    cloud_type: CloudType = "SECURE",
    image: Image = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Run a command as a job.

    tutelage exec --mount train.py --wait -- python train.py --epochs 3

    The same command on the same files is the same job. What it leaves in uploads/ is kept.
    """
    mounts: dict[str, str] = {}
    for one in mount or []:
        source, _, target = one.partition(":")
        mounts[source] = target or Path(source).resolve().name
    job = connect().exec(command, mount=mounts, **_placing(requires_vram_gb, allowed_hardware, cloud_type, image))
    _submitted(job, wait, as_json)


def _placing(
    requires_vram_gb: float | None, allowed_hardware: list[str] | None, cloud_type: str, image: str | None
) -> dict[str, Any]:
    """The arguments that say which workers may run a job; what is unset is left to the kind."""
    found = {
        "requires_vram_gb": requires_vram_gb,
        "allowed_hardware": allowed_hardware,
        "cloud_type": cloud_type,
        "docker_image": image,
    }
    return {name: value for name, value in found.items() if value is not None}


def _known_kind(name: str) -> str:
    from tutelage.jobs.kinds import KINDS

    kind, known = name.lower().replace("-", "_"), [one for one in KINDS if one != "custom"]
    if kind == "custom":
        raise ConfigError("--kind custom: a command of your own is submitted with: tutelage exec -- COMMAND")
    require_known("--kind", kind, known)
    return kind


def _training_options(kind: str, config: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Those of a training config, checked as `tutelage train` does."""
    from tutelage.config import TrainingConfig, load_config
    from tutelage.config.loading import parse_overrides, read_options

    given = parse_overrides(overrides)
    options = TrainingConfig(**given).flat() if config is None else load_config(config, overrides).flat()
    if config is not None:
        given = read_options(config) | given
    if kind == "weighted_sft" and EVERY_STEP not in given:
        del options[EVERY_STEP]  # it has another default there
    return options


def _options_of(kind: str, config: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Those of another kind, which the client checks. Files in the YAML file are seen from its folder."""
    from tutelage.config.loading import parse_overrides, read_options

    options = read_options(config) if config is not None else {}
    if config is not None:
        options = _seen_from(config.parent, kind, options)
    return options | parse_overrides(overrides)


def _seen_from(folder: Path, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from tutelage.jobs.identity import FILE_ID
    from tutelage.jobs.kinds import KINDS

    found = dict(options)
    for name in KINDS[kind].files:
        value = found.get(name)
        if isinstance(value, str) and not FILE_ID.fullmatch(value):
            found[name] = str(folder / Path(value).expanduser())
    template = found.get("chat_template")
    if isinstance(template, str) and template.endswith(".jinja"):
        found["chat_template"] = str(folder / Path(template).expanduser())
    return found


def _submitted(job: "Job", wait: bool, as_json: bool) -> None:
    if not wait:
        if as_json:
            print_json(job.record)
        else:
            print(f"{job.id}: {job.status}")
            _say_how_to_go_on(job)
        return
    print_part(f"{job.id}: {job.status}\n", beside=as_json)
    follow_log(job, lambda text: print_part(text, beside=as_json))
    try:
        job.wait()
    except KeyboardInterrupt:
        raise Interrupted(f"{job.id}: goes on; end it with: tutelage jobs cancel {job.id}") from None
    if as_json:
        print_json(job.record)
    job.raise_for_status()
    if not as_json:
        print(f"{job.id}: {job.status}")


def _say_how_to_go_on(job: "Job") -> None:
    """To standard error: a script that reads standard output finds the job there, and nothing else."""
    if job.kind == "api":
        print(
            f"ask it with: tutelage chat {job.model} MESSAGE; end it with: tutelage jobs cancel {job.id}",
            file=sys.stderr,
        )
    else:
        print(f"see its log with: tutelage jobs logs -f {job.id}", file=sys.stderr)
