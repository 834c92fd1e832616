"""An adapter merged into its base, in a process of its own: `python -m tutelage.worker.programs.merging SOURCE TARGET`.

The process ends and gives its memory back before the merged model is served. Not here: serving (`api.py`).
"""

import sys
from pathlib import Path

from tutelage.errors import TutelageError
from tutelage.models import load_frozen


def merge(source: str, target: Path) -> None:
    """Write model and tokenizer to `target`. Raises ModelError."""
    loaded = load_frozen(source)
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)


if __name__ == "__main__":
    try:
        merge(sys.argv[1], Path(sys.argv[2]))
    except TutelageError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
