"""Read a site's settings from `RELAY_*` environment variables; secrets also from files."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError
from sqlalchemy import URL, make_url

from relay_core.bundle import Policy, ReleaseMode
from relay_core.errors import RelayError
from relay_core.files import write_atomically
from relay_core.texts import site_name as checked_name

MIN_SECRET = 16
"""Least number of characters of a secret that is accepted outside the embedded mode."""
_WEAK = {"change-me", "changeme", "password", "secret", "relay", "postgres", "redis", "default", "example"}


class SettingsError(RelayError):
    """The site's settings do not allow a start."""

    code = "settings_invalid"
    exit_code = 13


class _FileSecrets(EnvSettingsSource):
    """`RELAY_X_FILE=/run/secrets/x` gives the secret setting X the content of that file, its last newline removed."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        if field.annotation not in (SecretStr, SecretStr | None):
            return None, field_name, False
        path = os.environ.get(f"RELAY_{field_name.upper()}_FILE")
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"RELAY_{field_name.upper()}_FILE: {path} cannot be read: {error}") from None


class Settings(BaseSettings):
    """Holds all settings of a site's processes."""

    model_config = SettingsConfigDict(env_prefix="RELAY_", extra="ignore")

    embedded: bool = False
    """Whether the site runs under `relay up`, on one machine for one person; then it makes its secrets itself."""
    site_name: Annotated[str, AfterValidator(checked_name)] = "site"
    """Name of the site, shown to people. At its first start `relay up` makes the site's key under it; from then on the name
    of the key holds, as it stands in what leaves the site and other sites trust it by that name."""
    home: Path = Path("relay-site")
    """Folder of everything that the site keeps, unless the next settings name other folders."""
    data_root: Path | None = None
    """Folder that every registered data set lies in; default: `home/data`."""
    artifacts: Path | None = None
    """Folder of the content-addressed store of checkpoints and pictures; default: `home/artifacts`."""
    work: Path | None = None
    """Folder that running jobs write to; default: `home/work`. A site's workers share it, so that any can resume a job."""
    keys: Path | None = None
    """Folder of the site's signing key and the keys that it trusts; default: `home/keys`. Workers alone need it."""
    heads: Path | None = None
    """Folder of the audit log's signed heads, which workers write; default: `home/heads`. Ship it to another machine."""
    heads_seconds: float = Field(default=300.0, ge=1)
    """Seconds between two signed heads of the audit log, where rows were added."""
    heads_syslog: str | None = None
    """Where signed heads are sent too: a socket's path such as /dev/log, or HOST or HOST:PORT, by UDP; None: nowhere."""
    inbox: Path | None = None
    """Watched folder: a bundle (`*.relay`) that is put there is imported; None: no folder is watched."""

    database_url: str | None = None
    """SQLAlchemy URL without a password; default: SQLite at `home/relay.db`."""
    database_password: SecretStr | None = None
    database_api_password: SecretStr | None = None
    """Password that `relay migrate` gives the API's role in PostgreSQL; the API itself has it as `database_password`."""
    database_worker_password: SecretStr | None = None
    """The same for the workers' role."""
    broker_url: str | None = None
    """Redis URL of the Celery broker, without a password; None: workers poll the database."""
    broker_password: SecretStr | None = None
    secret_key: SecretStr | None = None
    """Key of token hashes and of page cursors' signatures; the API and the command line need it, a worker does not."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    instance: str | None = None
    """Text in the answer of `/healthz`, by which whoever started this API tells it from another one on the same port."""
    device: str = "auto"
    """Device that a worker trains on: auto, cpu, cuda or cuda:N."""
    gpus: int = Field(default=1, ge=1)
    """GPUs that one worker may use for a job that asks for several."""

    beat: float = Field(default=5.0, gt=0)
    """Seconds between two heartbeats, each of which renews the lease."""
    lease: float = Field(default=25.0, gt=0)
    """Seconds after the last renewal until another worker may take a job."""
    ring_after: float = Field(default=15.0, gt=0)
    """Seconds in the queue after which the doorbell rings again."""
    max_tries: int = Field(default=3, ge=1)
    """Attempts at a job that crashes, before it is given up."""
    changed_images: Literal["warn", "error"] = "warn"
    """What a training does whose images are not those that its data set's preflight, or its own beginning, saw."""
    hang_minutes: float = Field(default=15.0, gt=0)
    """Minutes without a step after which a training counts as hung."""
    stop_grace: float = Field(default=30.0, gt=0)
    """Seconds that a training has to checkpoint and leave after SIGTERM."""
    release_policy: ReleaseMode = "warn"
    """What an export needs. `require`: a privacy audit of the checkpoint that passed, or an operator's reason; `warn`:
    nothing, but the job says that there is none, or what it found; `off`: nothing."""
    release_max_auc: float = Field(default=Policy.max_auc, ge=0.5, le=1)
    """AUC that an audit must exclude to pass; 0.5 is chance. docs/privacy.md says how this was chosen."""
    release_alpha: float = Field(default=Policy.alpha, ge=0.001, le=0.5)
    """Share of audits that may raise a false alarm."""
    release_min_patients: int = Field(default=Policy.min_patients, ge=2)
    """Fewest patients, trained on or not, from which on an audit can pass."""
    min_free_mib: int = Field(default=512, ge=0)
    """Free space of the artifact volume in MiB below which the site is not ready and takes no job."""
    trash_days: float = Field(default=7.0, gt=0)
    """Days that stored files which no row of the database ever named stay in the trash before they are deleted."""
    max_bundle_mib: int = Field(default=8192, ge=1)
    """Size of a bundle in MiB beyond which it is not taken in."""
    serve_device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    """Device that served models run on: auto, cpu, cuda or cuda:N."""
    serve_threads: int = Field(default=0, ge=0)
    """CPU threads of one call of a served model; 0: one per core."""
    serve_memory_mib: int = Field(default=1024, ge=1)
    """Memory of served models in MiB, estimated from their files; beyond it the least recently used ones are unloaded."""
    serve_batch: int = Field(default=16, ge=1)
    """Largest number of images, from requests that wait, that run together."""
    serve_batch_delay: float = Field(default=0.0, ge=0, le=1000)
    """Milliseconds that a request waits for others to run with; 0: only while the model is busy anyway."""
    serve_queue: int = Field(default=64, ge=1)
    """Number of requests that may wait for one model; further ones are answered with 429."""
    serve_max_mib: int = Field(default=256, ge=1)
    """Largest size in MiB of an image, or of an inference request, that is taken in."""
    serve_studies: int = Field(default=4, ge=1)
    """Jobs of large studies of one caller that may wait or run; further ones are answered with 429."""
    decode_memory_mib: int = Field(default=3072, ge=256)
    """Memory in MiB that decoding one uploaded image may take, in a process of its own."""
    decode_seconds: float = Field(default=60.0, gt=0)
    """Seconds that decoding one uploaded image may take."""
    serve_anonymous: bool = False
    """Whether the Open Inference Protocol (/v2) answers without a token, for clients that cannot send one."""
    header_seconds: float = Field(default=15.0, gt=0)
    """Seconds within which a request's headers must be complete."""
    body_seconds: float = Field(default=10.0, gt=0)
    """Seconds that a request's body may keep the API waiting, besides one for each 64 KiB that came."""
    connections: int = Field(default=1024, ge=2)
    """The most open connections to the API; one address may have half of them."""
    queue_limit: int = Field(default=10_000, ge=1)
    """Queued jobs beyond which a new one is refused."""
    lockout_failures: int = Field(default=10, ge=1)
    """Failed logins of one address after which more are refused, until `lockout_seconds` after the first."""
    lockout_seconds: float = Field(default=300.0, gt=0)
    reconcile: bool = True
    """Whether the API process also runs the reconciler; else `relay reconcile` must."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, files of secrets, variables; so a file wins over the variable with the secret."""
        return init_settings, _FileSecrets(settings_cls), env_settings

    @model_validator(mode="after")
    def _lease_outlives_beats(self) -> Settings:
        if self.lease < 3 * self.beat:
            raise ValueError(f"lease ({self.lease:g} s) must be at least three beats ({self.beat:g} s each)")
        return self

    @property
    def lately(self) -> float:
        """Return the seconds since its last heartbeat within which a worker counts as being there."""
        return 3 * self.beat + self.lease

    @property
    def data_folder(self) -> Path:
        """Return the absolute path of the data root."""
        return (self.data_root or self.home / "data").absolute()

    @property
    def artifact_folder(self) -> Path:
        """Return the absolute path of the artifact store."""
        return (self.artifacts or self.home / "artifacts").absolute()

    @property
    def work_folder(self) -> Path:
        """Return the absolute path of the folder that running jobs write to."""
        return (self.work or self.home / "work").absolute()

    @property
    def keys_folder(self) -> Path:
        """Return the absolute path of the folder of keys."""
        return (self.keys or self.home / "keys").absolute()

    @property
    def heads_folder(self) -> Path:
        """Return the absolute path of the folder of the audit log's signed heads."""
        return (self.heads or self.home / "heads").absolute()

    @property
    def database(self) -> URL:
        """Return the database's URL, with its password."""
        if self.database_url is None:
            return URL.create("sqlite", database=str(self.home.absolute() / "relay.db"))
        return _with_password(self.database_url, self.database_password, "database_url")

    @property
    def broker(self) -> str | None:
        """Return the broker's URL, with its password; None without a broker."""
        if self.broker_url is None:
            return None
        url = _with_password(self.broker_url, self.broker_password, "broker_url")
        return url.render_as_string(hide_password=False)

    @property
    def key(self) -> bytes:
        """Return the bytes of the secret key. Raises SettingsError where it is not set."""
        if self.secret_key is None:
            raise SettingsError("RELAY_SECRET_KEY (or RELAY_SECRET_KEY_FILE) is not set")
        return self.secret_key.get_secret_value().encode()


def _with_password(text: str, password: SecretStr | None, name: str) -> URL:
    try:
        url = make_url(text)
    except Exception:
        raise SettingsError(f"RELAY_{name.upper()}: not a URL such as postgresql+psycopg://user@host/name") from None
    if password is None:
        return url
    return url.set(username=url.username or "", password=password.get_secret_value())


def role_passwords(settings: Settings) -> dict[str, str]:
    """Return the passwords of the roles of API and workers in PostgreSQL; nothing where neither is set.

    Raises:
        SettingsError: one is missing, or not safe.
    """
    found = {"api": settings.database_api_password, "worker": settings.database_worker_password}
    if not any(found.values()):
        return {}
    for part, password in found.items():
        _require(password, f"database_{part}_password", f"lets the {part} into the database")
    return {part: password.get_secret_value() for part, password in found.items() if password is not None}


def load_settings(*, needs_key: bool = False, **overrides: Any) -> Settings:
    """Read the environment and refuse what would not be safe.

    Args:
        needs_key: whether the process makes or checks tokens or cursors; a worker does not.
        overrides: settings by name, which win over the environment.

    Raises:
        SettingsError: a value is not valid, or a secret that is needed is missing, short or a default outside the
            embedded mode.
    """
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        lines = [f"RELAY_{'_'.join(map(str, e['loc'])).upper() or '*'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    except SourceError as error:
        raise (error.__cause__ if isinstance(error.__cause__, SettingsError) else SettingsError(str(error))) from None
    if settings.embedded:
        if settings.secret_key is None:
            settings.secret_key = SecretStr(_embedded_key(settings.home / "secret-key"))
        return settings
    if needs_key:
        _require(settings.secret_key, "secret_key", "keys the tokens' hashes")
    if settings.database_url and settings.database.get_backend_name() != "sqlite":
        _require(_secret(settings.database.password), "database_password", "guards the database")
    if settings.broker_url:
        _require(_secret(make_url(str(settings.broker)).password), "broker_password", "guards the queue")
    return settings


def site_of_keys(keys: Path) -> Settings | None:
    """Return the settings of the site that a folder of keys belongs to: the environment's, or an embedded site around it.

    None: no site works with this folder, or it has no database yet.

    Raises:
        SettingsError: as `load_settings`.
    """
    settings = load_settings()
    if settings.keys_folder.resolve() == keys.resolve():
        file = settings.database.database if settings.database.get_backend_name() == "sqlite" else None
        return settings if file is None or Path(file).is_file() else None
    home = keys.absolute().parent
    if keys.name != "keys" or not (home / "relay.db").is_file():
        return None
    return load_settings(embedded=True, home=home, keys=None, database_url=None)


def _secret(value: Any) -> SecretStr | None:
    return SecretStr(str(value)) if value else None


def _require(secret: SecretStr | None, name: str, purpose: str) -> None:
    value = secret.get_secret_value() if secret else ""
    if len(value) >= MIN_SECRET and value.lower() not in _WEAK and len(set(value)) > 4:
        return
    state = "is a default or too simple" if value else "is empty"
    raise SettingsError(
        f"RELAY_{name.upper()} {state}; it {purpose}: set RELAY_{name.upper()}_FILE to a file with at least "
        f"{MIN_SECRET} random characters, for example from: openssl rand -hex 32"
    )


def _embedded_key(path: Path) -> str:
    """Return the secret key of an embedded site, made at its first start; only its file's owner can read it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, secrets.token_hex(32).encode(), mode=0o600)
    return path.read_text(encoding="ascii").strip()
