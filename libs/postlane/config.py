"""The environment and postlane.yaml, read once at the edge of each process (docs: the table of variables).

Secrets come from files or variables, never from arguments, and stay `SecretStr` until a connection needs them.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from postlane.core.errors import ConfigurationError as ConfigurationError
from postlane.core.policy import Config, mistakes
from postlane.eventlog.topics import TopicNames

DEFAULT_CONFIG = Path("postlane.yaml")
_KAFKA = "POSTLANE_KAFKA_"
# These may also stand in a file that `<NAME>_FILE` names: mounted secrets.
SECRETS = ("POSTLANE_DATABASE_URL", "POSTLANE_KAFKA_SASL_PASSWORD", "POSTLANE_KAFKA_SSL_KEY_PASSWORD")
SECRET_MAX_BYTES = 65_536
PREFIX_MAX_CHARS = 100  # a topic's name has at most 249
_PREFIX = re.compile(rf"[A-Za-z0-9._-]{{0,{PREFIX_MAX_CHARS}}}")


class Environment(BaseModel):
    """What the variables of a process say."""

    model_config = ConfigDict(frozen=True)

    bootstrap_servers: str = "127.0.0.1:9092"
    topic_prefix: str = ""
    config_file: Path | None = None
    kafka: dict[str, str] = Field(default_factory=dict, repr=False)
    http_host: str = "127.0.0.1"
    http_port: int | None = None
    lanes: tuple[str, ...] | None = None
    data_dir: Path = Path("./.postlane")
    instance_id: str = "localhost"
    database_url: str = Field("sqlite:///./postlane.db", repr=False)

    @property
    def names(self) -> TopicNames:
        return TopicNames(self.topic_prefix)


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """The POSTLANE_* variables. Raises ConfigurationError."""
    env = _with_secrets(os.environ if environ is None else environ)
    kafka = {k[len(_KAFKA) :].lower().replace("_", "."): v for k, v in env.items() if k.startswith(_KAFKA)}
    port = env.get("POSTLANE_HTTP_PORT")
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and int(port) < 65536):
        raise ConfigurationError(f"POSTLANE_HTTP_PORT: {port!r} is not a port; give a number from 0 to 65535")
    lanes = tuple(part.strip() for part in env.get("POSTLANE_LANES", "").split(",") if part.strip())
    prefix = env.get("POSTLANE_TOPIC_PREFIX", "")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"POSTLANE_TOPIC_PREFIX: {prefix[:100]!a} cannot begin a topic's name; use letters, digits and . _ -, "
            f"at most {PREFIX_MAX_CHARS} of them"
        )
    named = env.get("POSTLANE_CONFIG")
    if named and not _is_file(named):
        raise ConfigurationError(f"POSTLANE_CONFIG: there is no file {named}")
    return Environment(
        bootstrap_servers=env.get("POSTLANE_BOOTSTRAP_SERVERS") or "127.0.0.1:9092",
        topic_prefix=prefix,
        config_file=Path(named) if named else (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None),
        kafka=kafka,
        http_host=env.get("POSTLANE_HTTP_HOST") or "127.0.0.1",
        http_port=int(port) if port else None,
        lanes=lanes or None,
        data_dir=Path(env.get("POSTLANE_DATA_DIR") or "./.postlane"),
        instance_id=env.get("POSTLANE_INSTANCE_ID") or socket.gethostname(),
        database_url=env.get("POSTLANE_DATABASE_URL") or "sqlite:///./postlane.db",
    )


def _with_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, each `<NAME>_FILE` of a secret replaced by `<NAME>` with what the file holds."""
    env = dict(environ)
    for name in SECRETS:
        path = env.pop(f"{name}_FILE", "")
        if not path:
            continue
        if env.get(name):
            raise ConfigurationError(f"{name} and {name}_FILE are both set; give one of them")
        try:
            with Path(path).open(encoding="utf-8") as file:
                env[name] = file.read(SECRET_MAX_BYTES).rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no text file"
            raise ConfigurationError(f"{name}_FILE: {path} cannot be read: {reason}") from None
    return env


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # no path at all: too long, NUL
        return False


def read_config(path: Path | None) -> Config:
    """postlane.yaml, or the defaults where there is none. Raises ConfigurationError with the place of each mistake."""
    if path is None:
        return Config()
    body = load_yaml(path)
    if not isinstance(body, dict):
        raise ConfigurationError(f"{path}: a mapping with lanes and providers is expected")
    try:
        return Config.model_validate(body)
    except RecursionError:
        raise ConfigurationError(f"{path}: nested too deeply, or in itself") from None
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {mistakes(error)}") from None


def load_yaml(path: Path) -> object:
    """The document of a YAML file. Raises ConfigurationError."""
    try:
        return parse_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def parse_yaml(data: bytes) -> object:
    """The document in `data`. Raises ConfigurationError, which tells what is wrong by its place and never by what
    stands there: it may be a secret."""
    try:
        return yaml.safe_load(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigurationError("cannot be read: it is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        # The library quotes names that it found, an alias or a tag: a password may begin with * or !.
        problem = re.sub(r"'(?!<)[^']{2,}'", "'…'", error.problem or "no YAML")
        raise ConfigurationError(f"{where}{problem}") from None
    except yaml.YAMLError:
        raise ConfigurationError("holds a character that YAML does not allow") from None
    except RecursionError:
        raise ConfigurationError("nested too deeply") from None
    except Exception as error:  # of a number or date that is none; its text would repeat it
        raise ConfigurationError(f"a value cannot be read ({type(error).__name__})") from None
