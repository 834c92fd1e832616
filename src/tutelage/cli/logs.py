"""Where warnings of a long-running command go."""

import logging


def log_to_stderr() -> None:
    """One line each, with the time. Addresses of requests are left out: some hold what is nobody's business."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpcore", "uvicorn.access", "alembic", "aiobotocore", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
