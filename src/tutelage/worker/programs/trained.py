"""What a training run leaves for others: its model and the weights of its checkpoints, moved into `uploads/`.

Not here: training, and uploading (the worker).
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import OutputError
from tutelage.files import write_json, write_text
from tutelage.models import load_tokenizer
from tutelage.models.identity import READ_SUFFIXES
from tutelage.training.checkpoints import MARKER
from tutelage.training.sdft_trainer import TEACHER_FILE
from tutelage.worker.models import ADAPTER_CONFIG, BASE, MODEL_FOLDERS

TEMPLATE_FILE = "chat_template.jinja"
OF_THE_OPTIMIZER = ("optimizer.bin", "training_args.bin", "trainer_state.json", TEACHER_FILE)
"""Of a checkpoint's files with such suffixes, those that only continuing the run needs."""


def put_model(run: Path, uploads: Path, base: str) -> bool:
    """Move `model/` or `adapter/`; whether there was one. base: what the job calls its base model.

    Raises OutputError.
    """
    found = [name for name in MODEL_FOLDERS if (run / name).is_dir()]
    for name in found:
        _move(run / name, uploads / name)
        _name_base(uploads / name, base)
    return bool(found)


def put_checkpoints(run: Path, uploads: Path, config: TrainingConfig, base: str) -> list[int]:
    """Move the weights and tokenizers of complete checkpoints to `checkpoint-N/`; their steps. Raises OutputError."""
    steps: list[int] = []
    for checkpoint in run.glob("checkpoint-*"):
        step = checkpoint.name.partition("-")[2]
        if not step.isdigit() or not (checkpoint / MARKER).exists():
            continue
        target = uploads / checkpoint.name
        for file in sorted(checkpoint.iterdir()):
            if file.is_file() and file.suffix in READ_SUFFIXES and file.name not in OF_THE_OPTIMIZER:
                _move(file, target / file.name)
        _name_base(target, base)
        if config.chat_template != "default":
            write_text(target / TEMPLATE_FILE, template_source(target, config.chat_template))
        steps.append(int(step))
    return sorted(steps)


def put_file(file: Path, uploads: Path) -> None:
    """Copy a file, if it is there: the run is still to be read as one. Raises OutputError."""
    if file.is_file():
        try:
            uploads.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, uploads / file.name)
        except OSError as error:
            raise OutputError(
                f"{uploads}: cannot be written ({error.strerror or error}); free space on the worker"
            ) from (error)


def template_source(folder: Path, template: str) -> str:
    """The text of a chat template that is given as text or file, tried on the tokenizer of the folder.

    Raises ConfigError.
    """
    return ChatTemplate(load_tokenizer(str(folder)), template).source


def _move(source: Path, target: Path) -> None:
    """A rename: the run's folder and `uploads/` are on one disk, and nobody needs the run's copy again."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); free space on the worker") from (
            error
        )


def _name_base(folder: Path, base: str) -> None:
    """An adapter names its base by where this worker has it; others know it by the job's name for it."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return
    config: Any = json.loads(path.read_text(encoding="utf-8"))
    if Path(str(config.get(BASE))).is_dir():
        write_json(path, config | {BASE: base})
