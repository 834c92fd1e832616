"""What a server is told: where it keeps things, where it listens, how much it takes in."""

import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet

from tutelage.errors import ConfigError, OutputError
from tutelage.files import make_folder
from tutelage.jobs.queue import LEASE_SECONDS

GIGABYTE = 1024**3
MAX_CONNECTIONS = 60
KEY_VARIABLE = "TUTELAGE_SECRET_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """home: the folder of everything that is stored. database, files: elsewhere, for a team. lease_seconds: how long
    a worker may be silent. heartbeat_seconds: how often it is to report, and so how soon a cancel reaches it.
    processes: of the API, on the one address."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 8000
    database: str | None = None
    files: str | None = None
    max_file_bytes: int = 20 * GIGABYTE
    lease_seconds: float = LEASE_SECONDS
    heartbeat_seconds: float = 3.0
    require_tokens: bool = False
    processes: int = 1

    @property
    def connections(self) -> int:
        """To the database, of each process: PostgreSQL takes 100 unless it is told otherwise."""
        return max(10, MAX_CONNECTIONS // self.processes)

    @property
    def database_url(self) -> str:
        """The address of the records."""
        return self.database or f"sqlite:///{self.home.absolute() / 'tutelage.db'}"

    @property
    def files_url(self) -> str:
        """The address of the contents of files."""
        return self.files or str(self.home.absolute() / "files")

    @property
    def uploads(self) -> Path:
        """Where files wait until they are complete."""
        return self.home / "incoming"

    @property
    def is_embedded(self) -> bool:
        """The records are in the home folder: one process works there."""
        return self.database is None

    @property
    def keeps_files_here(self) -> bool:
        """Contents of files are in a folder, not in a store that others have as well."""
        return "://" not in self.files_url or self.files_url.startswith("file://")

    @property
    def is_loopback(self) -> bool:
        """Nobody but this machine can connect."""
        return is_loopback(self.host)

    @property
    def open_on_loopback(self) -> bool:
        """Whether who comes from this machine needs no token."""
        return self.is_embedded and self.keeps_files_here and self.is_loopback and not self.require_tokens


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine and no other."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def secret_key(home: Path) -> bytes:
    """The key of the secrets: from the environment, or from `secret.key`, which is made with the first start.

    Raises ConfigError for one that is none, OutputError where the folder cannot be written.
    """
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given.encode()
    make_folder(home, "--home")
    path = home / "secret.key"
    try:
        # Nobody but the owner may read it, from the first moment on; and of two processes one makes it.
        unfinished = home / f".secret.{secrets.token_hex(4)}"
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
        try:
            os.link(unfinished, path)
        except FileExistsError:
            pass
        finally:
            unfinished.unlink()
        key = path.read_bytes()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written or read ({error.strerror}); choose another --home") from error
    if not key.strip():
        raise ConfigError(f"{path}: is empty; bring it back from a backup, or delete it and set the secrets again")
    return key.strip()
