"""Read settings from the environment and from `.env`, and report invalid ones.

The environment of this process is not changed: workers inherit the master's environment, so a
reload would not see changes of the file.
"""

import difflib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import environ

BASE_DIR = Path(__file__).resolve().parent.parent
LINE = re.compile(r"(?:export )?([A-Za-z_0-9]+)=")
TRUE, FALSE = {"on", "true", "yes", "y", "1"}, {"off", "false", "no", "n", "0"}
# The similarity from which a name counts as a misspelling of another.
SIMILARITY = 0.88

T = TypeVar("T")
# Aliases, because the methods of Environment hide the names of these types.
Text: TypeAlias = str
Names: TypeAlias = list[str]
Truth: TypeAlias = bool
Whole: TypeAlias = int
Number: TypeAlias = float


class InvalidSettings(Exception):
    """Invalid settings, one line for each."""


class Environment:
    """The values of settings. The environment takes precedence over the file."""

    def __init__(self, process: Mapping[Text, Text], file: Path) -> None:
        self._problems: list[str] = []
        self._known = {"ENV_FILE", "SECRET_KEY"}
        self._file, self._in_file = file, self._read(file)
        self._values = {**self._in_file, **process}

    # --- Values by type -------------------------------------------------------------------------

    def str(self, name: Text, default: Text) -> Text:
        self._known.add(name)
        return self._values.get(name, default)

    def list(self, name: Text, default: Names) -> Names:
        value = self.str(name, ",".join(default))
        return [item.strip() for item in value.split(",") if item.strip()]

    def bool(self, name: Text, default: Truth) -> Truth:
        return self._cast(name, default, _truth, "must be on or off")

    def decision(self, name: Text) -> Truth | None:
        """Return a setting without a default; None if it is not set."""
        return self._cast(name, None, _truth, "must be on or off")

    def int(self, name: Text, default: Whole) -> Whole:
        return self._cast(name, default, Whole, "must be a whole number")

    def float(self, name: Text, default: Number) -> Number:
        return self._cast(name, default, _finite, "must be a number")

    def db(self, name: Text, default: Text) -> dict[Text, Any]:
        """Return Django's settings of a database. Its value is never shown: it has a password."""
        value = self.str(name, default) or default
        try:
            database: dict[Text, Any] = environ.Env.db_url_config(value)
        except Exception:  # The parser raises many classes. For all of them the value is invalid.
            database = {}
        if not database.get("ENGINE") or not _is_supported(value):
            self._problems.append(
                f"{name} must be postgres://user:password@host:5432/name or sqlite:////path/of/file"
                f"{_scheme_of(value)}; write a special character of the password as %XX."
            )
            database = environ.Env.db_url_config(default)
        return database

    def _cast(self, name: Text, default: T, cast: Callable[[Text], T], rule: Text) -> T:
        value = self.str(name, "").strip()
        if not value:
            return default
        try:
            return cast(value)
        except ValueError:
            self._problems.append(f"{name} {rule}, not {value[:40]!r}.")
            return default

    # --- Problems -------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Raise InvalidSettings if a value is invalid or a name is misspelt."""
        problems = [*self._problems, *self._misspelt()]
        if problems:
            raise InvalidSettings("\n".join(f"(config.E001) {line}" for line in problems))

    def has(self, name: Text) -> Truth:
        return name in self._values

    def unknown(self) -> Names:
        """Return the names in the file that are not settings."""
        return sorted(set(self._in_file) - self._known)

    def _misspelt(self) -> Iterator[Text]:
        for name in sorted(set(self._values) - self._known):
            similar = difflib.get_close_matches(name, self._known, 1, SIMILARITY)
            if similar and name.isupper():
                yield f"{name} is not a setting; did you mean {similar[0]}?"

    def _read(self, file: Path) -> dict[Text, Text]:
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            self._problems.append(f"{file} cannot be read: {error}.")
            return {}
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#") and not LINE.match(line):
                self._problems.append(
                    f"Line {number} of {file} is not NAME=value without spaces before the '='."
                )

        class Parser(environ.Env):  # type: ignore[misc]  # django-environ has no types
            ENVIRON: dict[Text, Text] = {}

        lines = [line for line in text.splitlines() if LINE.match(line)]
        Parser.read_env(io.StringIO("\n".join(lines)))
        return Parser.ENVIRON


def _truth(value: str) -> bool:
    if value.lower() in TRUE | FALSE:
        return value.lower() in TRUE
    raise ValueError(value)


def _finite(value: str) -> float:
    if math.isfinite(number := float(value)):
        return number
    raise ValueError(value)


def _is_supported(address: str) -> bool:
    return re.match(r"(postgres|postgresql|sqlite)://", address) is not None


def _scheme_of(address: str) -> str:
    scheme = re.match(r"([a-z0-9+]{1,20})://", address)
    return f", not {scheme[1]}://…" if scheme and not _is_supported(address) else ""


def read() -> Environment:
    """Return the settings in this process's environment and in the file that ENV_FILE names."""
    file = Path(os.environ.get("ENV_FILE") or BASE_DIR / ".env")
    return Environment(dict(os.environ), file)


# --- Settings that gunicorn reads before Django is set up ---------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """The settings of the server."""

    host: str
    port: int
    workers: int
    threads: int
    client_seconds: float
    drain_seconds: float
    access_log: bool


def read_server(env: Environment) -> Server:
    return Server(
        host=env.str("GATEWAY_HOST", default="127.0.0.1"),
        port=env.int("GATEWAY_PORT", default=8000),
        workers=env.int("GATEWAY_WORKERS", default=2),
        threads=env.int("GATEWAY_THREADS", default=256),
        client_seconds=env.float("CLIENT_SECONDS", default=30.0),
        drain_seconds=env.float("DRAIN_SECONDS", default=25.0),
        access_log=env.bool("ACCESS_LOG", default=True),
    )


def old_names(env: Environment) -> list[str]:
    """Return a line for each name that is set but not read, because other programs set it too."""
    return [
        f"{name} is set, but this gateway reads GATEWAY_{name}."
        for name in ("HOST", "PORT")
        if env.has(name) and not env.has(f"GATEWAY_{name}")
    ]
