"""A process that prepares parts of a file for another one: tasks and parts on its input, what became of them on its
output. It ends when its input does, as it also does when the other process ends. part_workers.py starts it."""

import os
import pickle
import sys
from typing import Any

from tutelage.data.token_parts import OnePassNeededError, PartPreparer, old_objects_left_alone
from tutelage.data.token_rows import RowFiles
from tutelage.errors import OutputError


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what somebody prints is no answer
    requests = sys.stdin.buffer
    path, descriptors, task = pickle.load(requests)
    with RowFiles(descriptors) as files, old_objects_left_alone():
        preparer: PartPreparer | None = None
        while True:
            try:
                part = pickle.load(requests)
            except EOFError:
                return
            try:
                preparer = preparer or _preparer(task, files)
                answer: Any = preparer.prepare(path, part)
            except (OnePassNeededError, OutputError) as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()


def _preparer(task: bytes, files: RowFiles) -> PartPreparer:
    """Raises OnePassNeededError where the task cannot be had here: a function of the user's script goes by its name."""
    try:
        return PartPreparer(pickle.loads(task), files)
    except Exception as error:  # of many kinds: AttributeError, ImportError, what somebody's `__setstate__` raises
        raise OnePassNeededError(str(error)) from error
