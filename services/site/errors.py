"""List everything that the service refuses: error code -> HTTP status and a public title (RFC 9457).

The `detail` of an answer names the file, key or id and the way out; it never holds a path outside the data
root or a patient's id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay_core.errors import RelayError


@dataclass(frozen=True)
class Entry:
    """Says what an error code means to a client: an HTTP status and a title."""

    status: int
    title: str


CATALOGUE: dict[str, Entry] = {
    # authentication and roles
    "unauthenticated": Entry(401, "A valid token is needed"),
    "forbidden": Entry(403, "This token's role does not allow that"),
    "locked_out": Entry(429, "Too many failed logins from this address"),
    # the request
    "bad_request": Entry(400, "The request cannot be understood"),
    "invalid_request": Entry(422, "The request is not valid"),
    "not_found": Entry(404, "There is no such thing"),
    "method_not_allowed": Entry(405, "This address does not answer that method"),
    "unsupported_media_type": Entry(415, "The body is of a type that is not read here"),
    "too_large": Entry(413, "The body is too large"),
    "too_slow": Entry(408, "The body comes too slowly"),
    "cursor_invalid": Entry(400, "The page cursor is not from this list"),
    "idempotency_key_missing": Entry(400, "An Idempotency-Key is needed"),
    "idempotency_key_reused": Entry(422, "The Idempotency-Key was used with another body"),
    "precondition_required": Entry(428, "An If-Match header is needed"),
    "precondition_failed": Entry(412, "Somebody changed it in between"),
    "conflict": Entry(409, "Its present state does not allow that"),
    "range_not_satisfiable": Entry(416, "The file has no such bytes"),
    "name_taken": Entry(409, "The name is taken"),
    "in_use": Entry(409, "Something still needs it"),
    "real_images": Entry(403, "It holds images of patients, and does not leave this machine"),
    # data sets
    "path_escape": Entry(422, "The path leaves the site's data root"),
    "dataset_missing": Entry(422, "A data set is not registered"),
    "preview_missing": Entry(409, "The data set has no preview yet"),
    # models that are served
    "image_invalid": Entry(422, "The image cannot be used"),
    "image_too_large": Entry(413, "The image takes more memory or time than one is given"),
    "decoder_unavailable": Entry(503, "Images cannot be decoded now"),
    "inference_invalid": Entry(400, "The inference request is not valid"),
    "model_invalid": Entry(422, "The exported model cannot be used"),
    "model_unavailable": Entry(503, "The model cannot be served now"),
    "reason_missing": Entry(422, "A reason is needed"),
    "busy": Entry(429, "The model has too many requests waiting"),
    # the state of the site
    "queue_full": Entry(429, "The queue is full"),
    "storage_full": Entry(507, "The site's storage is full"),
    "volume_away": Entry(503, "A volume of the site is not there"),
    "restore_unconfirmed": Entry(409, "Nobody has confirmed what was restored"),
    "backup_damaged": Entry(422, "The backup is not whole"),
    "artifact_damaged": Entry(500, "Stored bytes are damaged"),
    "not_ready": Entry(503, "The site is not ready"),
    "database_unavailable": Entry(503, "The database is not available"),
    "settings_invalid": Entry(500, "The site's settings are not valid"),
    "audit_broken": Entry(500, "The audit log's chain is broken"),
    "lease_lost": Entry(409, "The job belongs to another attempt"),
    "internal": Entry(500, "Something went wrong inside"),
    # raised by the client of this API
    "service_unreachable": Entry(503, "The service cannot be reached"),
    "download_damaged": Entry(502, "The file was damaged on its way"),
    # how a job fails
    "worker_lost": Entry(500, "The worker was lost"),
    "process_crashed": Entry(500, "The training process ended unexpectedly"),
    "out_of_memory": Entry(500, "Memory ran out"),
    "hung": Entry(500, "The training made no progress"),
    # codes of the relay core
    "relay_error": Entry(422, "The relay core refused"),
    "run_file_invalid": Entry(422, "The run file is not valid"),
    "data_invalid": Entry(422, "The data set cannot be used"),
    "checkpoint_invalid": Entry(422, "The checkpoint cannot be used"),
    "training_diverged": Entry(500, "The training diverged"),
    "device_unavailable": Entry(422, "The device is not available"),
    "stopped": Entry(409, "The training was stopped"),
    # codes of the relay core about keys and bundles
    "key_missing": Entry(409, "A key is missing"),
    "key_locked": Entry(409, "The site's key cannot be opened"),
    "bundle_incomplete": Entry(409, "Something that belongs into the bundle is missing"),
    "bundle_damaged": Entry(422, "The bundle is damaged"),
    "bundle_version_unknown": Entry(422, "The bundle's format is not known"),
    "bundle_newer": Entry(422, "The bundle was made by a newer version"),
    "bundle_too_large": Entry(413, "The bundle is too large"),
    "signature_invalid": Entry(422, "The signature is not valid"),
    "signer_unknown": Entry(422, "The signer is not trusted here"),
    "signer_revoked": Entry(422, "The signer's key was revoked"),
    "wrong_recipient": Entry(422, "The bundle is for somebody else"),
    "history_broken": Entry(422, "The history of the relay is broken"),
    "weights_invalid": Entry(422, "The weights cannot be used"),
    "bundle_other_run": Entry(409, "The bundle belongs to no run of this site"),
    "release_refused": Entry(409, "The site's policy does not let it leave"),
    "audit_invalid": Entry(422, "The privacy audit cannot be used"),
    "parent_differs": Entry(409, "The training began from another bundle"),
    "hop_out_of_order": Entry(409, "It is not this site's turn"),
    "bundle_used": Entry(409, "The bundle was imported already"),
    "bundle_stale": Entry(409, "A newer bundle was imported already"),
}


class Refusal(RelayError):
    """Raised where the service does not carry out a request, or a step of a job.

    Args:
        code: a key of `CATALOGUE`.
        message: what was wrong, where, and what to do.
        headers: headers of the HTTP answer, such as Retry-After.
        extra: further members of the problem document.
    """

    def __init__(
        self, code: str, message: str, headers: Mapping[str, str] | None = None, extra: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def status(self) -> int:
        """Return the HTTP status of the error code."""
        return CATALOGUE[self.code].status
