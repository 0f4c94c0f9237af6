"""Messages between a worker process and the host of the engines, in the supervisor. They are sent as those of `ipc.py`.

    worker -> host   open handle EngineOrder | job id handle team prompt options | deliver_at_once id | cancel id
                     close handle
    host -> worker   opened handle OpenedEngine | refused handle kind message | state handle is_running
                     admitted handle id | steps handle [...] | failed handle id error

A handle is an engine of one worker, an id is a job of one worker; the worker chooses both.
"""  # fmt: skip

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.local.host.ipc import EngineSpec, IpcError
from backends.local.scheduling.admission import Busy, JobAdmission
from proxy.wire.errors import BackendError, HeadgateError, RequestError

ERRORS: Mapping[str, type[HeadgateError]] = {each.__name__: each for each in (BackendError, Busy, RequestError)}
FIELDS = ("status", "code", "param", "headers", "source", "retryable", "sent", "reason")


@dataclass(frozen=True, slots=True)
class SupervisorSettings:
    """How the engine's process is started and kept."""

    backend: str  # the backend's name, for logs
    start_timeout_s: float
    hang_timeout_s: float
    keep_alive_s: float | None
    preload: bool
    memory_bytes: int | None  # the limit of all models of this gateway together
    required_bytes: int  # the estimate for this model


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The arguments of `JobAdmission`."""

    max_waiting: int
    workers: int
    kv_bytes: int | None
    max_wait_s: float
    kv_bytes_per_token: int

    def admission(self) -> JobAdmission:
        """Return an admission with these limits and no job."""
        return JobAdmission(
            self.max_waiting, self.workers, self.kv_bytes, self.max_wait_s, kv_bytes_per_token=self.kv_bytes_per_token
        )


@dataclass(frozen=True, slots=True)
class EngineOrder:
    """An engine that a worker needs. Equal keys are one engine."""

    key: str
    spec: EngineSpec
    settings: SupervisorSettings
    limits: AdmissionLimits


@dataclass(frozen=True, slots=True)
class OpenedEngine:
    """What a worker knows of an engine that it may use."""

    device: str
    compute_type: str
    workers: int
    is_running: bool


def decode_order(content: Mapping[str, Any]) -> EngineOrder:
    """Return the order of an "open" message. Raises IpcError."""
    try:
        return EngineOrder(
            content["key"], EngineSpec(**content["spec"]), SupervisorSettings(**content["settings"]),
            AdmissionLimits(**content["limits"]),
        )  # fmt: skip
    except (TypeError, KeyError) as error:
        raise IpcError("an invalid order") from error


def encode_error(error: HeadgateError) -> dict[str, Any]:
    """Return what `decode_error` makes an equal error from."""
    return {
        "class": type(error).__name__,
        "message": error.message,
        **{name: getattr(error, name) for name in FIELDS if hasattr(error, name)},
    }


def decode_error(content: Mapping[str, Any]) -> HeadgateError:
    """Return the error of a "failed" message."""
    fields = dict(content)
    made = ERRORS.get(fields.pop("class"), BackendError)
    unused = ("source", "retryable", "sent", "reason") if made is RequestError else ("param",)
    return made(fields.pop("message"), **{name: value for name, value in fields.items() if name not in unused})
