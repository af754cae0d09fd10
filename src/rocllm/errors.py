"""Everything rocllm raises on purpose.

    RocllmError
    ├ OptionsError (ValueError)          an option that cannot be meant
    ├ DeviceError
    │ ├ NoDeviceFound                    no AMD GPU that ROCm could use
    │ └ DeviceAccessDenied (PermissionError)
    ├ ModelFileError
    │ ├ ModelNotFound (FileNotFoundError)
    │ ├ InvalidGGUF (ValueError)         carries the offset in the file
    │ ├ UnsupportedArchitecture
    │ └ DownloadFailed
    ├ DoesNotFit                         carries the plan and what would fit
    ├ ServerError                        carries argv, exit status, last output lines, text so far
    │ ├ BinaryNotFound (FileNotFoundError)
    │ ├ StartFailed
    │ │ └ AddressInUse
    │ ├ StartTimeout (TimeoutError)
    │ ├ StartCancelled
    │ ├ OffloadFailed                    a GPU was chosen, the child does not use it
    │ ├ OutOfMemory (MemoryError)
    │ └ ServerCrashed                    it ended while it was serving
    ├ RequestError                       carries the HTTP status and the text so far
    │ ├ ConnectionLost (ConnectionError)
    │ ├ RequestTimeout (TimeoutError)
    │ ├ BadRequest (ValueError)
    │ ├ ContextOverflow (ValueError)     carries n_prompt_tokens and n_ctx
    │ ├ ServerBusy
    │ └ ProtocolError                    the answer is not what a llama-server says
    ├ StreamClosed (RuntimeError)        a stream was read after it had been closed
    └ BackendUnavailable                 names the extra to install

Beside it stands one warning, `RocllmWarning` (UserWarning).

Where a class has a standard-library cousin it inherits it, so ordinary `except FileNotFoundError`
works. Every message has up to three parts, each on its own line: what failed with which values,
what is known about why, what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rocllm.memory import MemoryPlan


class RocllmError(Exception):
    """Base of all errors that rocllm raises.

    Parameters
    ----------
    what: what failed, with the values.
    why: what is known about the cause.
    remedy: what the user can do next.

    `retryable` says whether the same call may succeed unchanged a little later, and `cause` names
    the cause where it is a known one, such as `"out_of_device_memory"` (docs/failures.md has them
    all): what decides what to do next, so that nobody decides it by reading a message.
    """

    retryable: bool = False
    cause: str | None = None

    def __init__(self, what: str, *, why: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.remedy) if part)


class RocllmWarning(UserWarning):
    """Something is not as it was chosen, and works all the same."""


class OptionsError(RocllmError, ValueError):
    """An option has a value that cannot be meant, or there is no such option."""


class DeviceError(RocllmError):
    """Something about the machine's GPUs."""


class NoDeviceFound(DeviceError):
    """A GPU was asked for and there is none that ROCm could use."""


class DeviceAccessDenied(DeviceError, PermissionError):
    """The GPU is there, and this user may not open its device files."""


class ModelFileError(RocllmError):
    """Something about a model file."""


class ModelNotFound(ModelFileError, FileNotFoundError):
    """No model file under that path or name."""

    cause = "missing_file"


class InvalidGGUF(ModelFileError, ValueError):
    """The file is not a GGUF file, or a broken one.

    `offset` is the position in bytes at which reading stopped, `None` when there is none.
    """

    cause = "bad_file"

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        remedy: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.offset = offset


class UnsupportedArchitecture(ModelFileError):
    """The file is sound and the engine does not know this model architecture."""

    cause = "unknown_architecture"


class DownloadFailed(ModelFileError):
    """A model could not be fetched; nothing is left at the final path."""


class DoesNotFit(RocllmError):
    """The model does not fit into the memory that is free, the way it was asked for.

    `plan` is the smallest plan that was tried, with its numbers, `would_fit` what would fit, the
    nearest first.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        remedy: str | None = None,
        plan: MemoryPlan | None = None,
        would_fit: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.plan = plan
        self.would_fit = would_fit


class ServerError(RocllmError):
    """The child process failed.

    `argv` is the command line, `exit_status` the exit code (negative: the signal that ended it,
    `None`: still running or never started), `output` the last lines that it printed, `text` what a
    stream had delivered before.
    """

    text: str = ""

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        remedy: str | None = None,
        argv: tuple[str, ...] = (),
        exit_status: int | None = None,
        output: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.argv = argv
        self.exit_status = exit_status
        self.output = output


class BinaryNotFound(ServerError, FileNotFoundError):
    """There is no llama-server to run; the message lists where it was looked for."""

    cause = "missing_program"


class StartFailed(ServerError):
    """The child ended before it was ready."""


class AddressInUse(StartFailed):
    """The TCP port is taken by another process."""

    retryable = True
    cause = "address_in_use"


class StartTimeout(ServerError, TimeoutError):
    """The child neither became ready nor showed progress for longer than allowed."""

    cause = "stalled"


class StartCancelled(ServerError):
    """Loading was cancelled by the caller; the child is gone."""


class OffloadFailed(ServerError):
    """A GPU was chosen and the child does not use it."""

    cause = "gpu_not_used"


class OutOfMemory(ServerError, MemoryError):
    """The child could not allocate memory, on a device or on the host."""


class ServerCrashed(ServerError):
    """The child ended while it was serving."""

    retryable = True


class RequestError(RocllmError):
    """A request to a running server failed.

    `status` is the HTTP status (`None`: no answer), `text` what a stream had delivered before.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        remedy: str | None = None,
        status: int | None = None,
        text: str = "",
    ) -> None:
        super().__init__(what, why=why, remedy=remedy)
        self.status = status
        self.text = text


class ConnectionLost(RequestError, ConnectionError):
    """The server could not be reached, or went away before the answer was complete."""

    retryable = True


class RequestTimeout(RequestError, TimeoutError):
    """The server did not answer in time."""

    retryable = True


class BadRequest(RequestError, ValueError):
    """The server refused the request as wrong."""


class ContextOverflow(RequestError, ValueError):
    """The prompt is longer than the context of a slot.

    `n_prompt_tokens` and `n_ctx` are the server's own numbers, in tokens.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        remedy: str | None = None,
        status: int | None = None,
        text: str = "",
        n_prompt_tokens: int | None = None,
        n_ctx: int | None = None,
    ) -> None:
        super().__init__(what, why=why, remedy=remedy, status=status, text=text)
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class ServerBusy(RequestError):
    """The server is loading, or has no free slot."""

    retryable = True


class ProtocolError(RequestError):
    """The answer is not what a llama-server says."""


class StreamClosed(RocllmError, RuntimeError):
    """A stream was read after it had been closed."""


class BackendUnavailable(RocllmError):
    """The backend cannot run here; the message names what to install."""
