"""The services that handlers of the admin API use, in the process to which operators connect."""

from dataclasses import dataclass, field

from proxy.admin.audit_files import AuditFiles
from proxy.admin.processes import Processes
from proxy.admin.samples import Samples
from proxy.config.admin_table import AdminTable
from proxy.config.build import Config


@dataclass(frozen=True, slots=True)
class Services:
    """The processes behind the listener, and what is kept beside them."""

    config: Config
    """The config that the process of the listener was started with; only what a reload cannot change is read."""
    settings: AdminTable
    processes: Processes
    samples: Samples
    audit: AuditFiles
    drained: set[str] = field(default_factory=set)
    """The targets that were drained by hand, for processes that are started later."""
