"""Everything the endpoints work with, opened once. Not here: HTTP."""

from dataclasses import dataclass, field
from functools import partial

from anyio import CapacityLimiter

from tutelage.errors import ConfigError
from tutelage.files import make_folder
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.jobs.event_log import EventLog
from tutelage.jobs.listing import Listing
from tutelage.jobs.queue import Queue
from tutelage.jobs.registry import Registry
from tutelage.jobs.run_logs import RunLogs
from tutelage.jobs.stored_files import FileStore
from tutelage.server.masking import Masking
from tutelage.server.notices import Notices
from tutelage.server.settings import ServerSettings, secret_key

STORE_THREADS = 16


@dataclass(frozen=True)
class Services:
    """The parts of `tutelage.jobs` on one database, and what wakes those who wait. organization: the default one.

    store_threads: how many may wait for the store of files at a time.
    """

    settings: ServerSettings
    database: Database
    queue: Queue
    listing: Listing
    events: EventLog
    logs: RunLogs
    files: FileStore
    registry: Registry
    access: Access
    notices: Notices
    masking: Masking
    organization: str
    store_threads: CapacityLimiter = field(default_factory=partial(CapacityLimiter, STORE_THREADS))

    def close(self) -> None:
        """Give back what is open."""
        self.database.close()


def open_services(settings: ServerSettings, *, begins: bool = True) -> Services:
    """Open database and files, bring the schema up to date, give live runs a whole lease, try a store of files out.

    begins: whether a server does so, and not one more process of a server that runs: nobody had to wait for that one,
    and while the store is away it does what needs no files.
    Raises ConfigError, OutputError and StorageError; ConfigError too where others could get in without a token.
    """
    make_folder(settings.home, "--home")
    database = Database(settings.database_url, connections=settings.connections)
    database.migrate()
    access = Access(database, secret_key(settings.home))
    organization = access.organization()
    # What a server that was killed left of its own worker's tokens is nobody's.
    if not settings.open_on_loopback and not access.has_tokens():
        raise ConfigError(
            f"--host {settings.host}: others than this machine, or other stores, need tokens, and there is none; "
            "make one first: tutelage token create NAME --scope admin"
        )
    queue = Queue(database, lease_seconds=settings.lease_seconds)
    # While no server was there, no heartbeat could be taken in.
    if begins:
        queue.extend_leases()
    files = FileStore(database, settings.files_url, settings.uploads, max_bytes=settings.max_file_bytes, try_out=begins)
    files.remove_left_behind()
    return Services(
        settings=settings,
        database=database,
        queue=queue,
        listing=Listing(database),
        events=EventLog(database),
        logs=RunLogs(database),
        files=files,
        registry=Registry(database),
        access=access,
        notices=Notices(),
        masking=Masking(access),
        organization=organization,
    )
