"""All errors of relay, in one tree. Each has a `code` for machines and an `exit_code` for scripts.

A message says what was wrong, where (file, row, key) and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RelayError(Exception):
    """Base of every error that a user can cause or cure."""

    code = "relay_error"
    exit_code = 1


class RunFileError(RelayError):
    """A run file is not valid: unknown key, wrong type, missing value."""

    code = "run_file_invalid"
    exit_code = 3


@dataclass(frozen=True)
class Problem:
    """A fault in one file of a data set; `file` is relative to the site's folder."""

    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


class DataError(RelayError):
    """A data set cannot be used. `problems` names every bad file, not only the first."""

    code = "data_invalid"
    exit_code = 4

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  {problem}" for problem in self.problems)]))


class ImageError(RelayError):
    """An image that was sent in cannot be used; the message names no file, whose name may be a patient's."""

    code = "image_invalid"
    exit_code = 14


class ImageTooLargeError(ImageError):
    """An image takes more memory or time than one is given."""

    code = "image_too_large"
    exit_code = 15


class DecoderError(RelayError):
    """The process that decodes images cannot be started; the image is not to blame."""

    code = "decoder_unavailable"
    exit_code = 16


class CheckpointError(RelayError):
    """A checkpoint is missing, damaged, or was made for other networks."""

    code = "checkpoint_invalid"
    exit_code = 5


class BundleError(RelayError):
    """A bundle is refused, or cannot be made.

    Args:
        code: one of `CODES`.
        message: what was wrong, where, and what to do about it.
    """

    exit_code = 10
    CODES = frozenset({
        "bundle_damaged", "bundle_version_unknown", "bundle_newer", "bundle_too_large", "signature_invalid",
        "signer_unknown", "signer_revoked", "bundle_other_run", "hop_out_of_order", "bundle_used", "bundle_stale",
        "wrong_recipient", "history_broken", "weights_invalid", "key_missing", "key_locked", "bundle_incomplete",
        "parent_differs", "audit_invalid", "release_refused",
    })  # fmt: skip

    def __init__(self, code: str, message: str) -> None:
        if code not in self.CODES:
            raise ValueError(code)
        self.code = code
        super().__init__(message)


class ExportError(RelayError):
    """An exported model did not give what the network gives, or an ONNX file cannot be used."""

    code = "model_invalid"
    exit_code = 8


class TrainingDiverged(RelayError):
    """Loss or gradients stayed non-finite; the last checkpoint before it is kept."""

    code = "training_diverged"
    exit_code = 6


class DeviceError(RelayError):
    """A device was asked for that this machine does not have."""

    code = "device_unavailable"
    exit_code = 7


class Stopped(RelayError):
    """Training was asked to stop, wrote a checkpoint and left; `--resume` goes on from it."""

    code = "stopped"
    exit_code = 75
