"""Settings for every test: no network, few threads, no deadlines on a busy machine."""

import os

# Before torch and tokenizers are imported; child processes inherit them. Torch itself stays unimported here, so
# that tests of the torch-free layers start fast.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread costs more than it gives
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # programs with all cores leave them to others while they wait
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

# Axolotl pins its own versions of everything, so these tests need a second environment: `make test-axolotl`.
collect_ignore = [] if "TUTELAGE_AXOLOTL_PYTHON" in os.environ else ["real_axolotl"]

settings.register_profile("tutelage", deadline=None)
settings.load_profile("tutelage")

pytest_plugins = ["tests.databases", "tests.object_stores", "tests.served"]  # fixtures: SQLite, PostgreSQL, S3, servers
