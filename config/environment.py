"""Read settings from the environment and from `.env`, and name those that cannot work.

Nothing is written into the environment of this process: gunicorn's master would hand it on to its
workers, and a reload would not see what has changed in the file.
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
# How alike two names are when one is taken for a slip of the other.
ALIKE = 0.88

T = TypeVar("T")
# The methods of Environment have the names of these types.
Text: TypeAlias = str
Names: TypeAlias = list[str]
Truth: TypeAlias = bool
Whole: TypeAlias = int
Number: TypeAlias = float


class InvalidSettings(Exception):
    """Settings that cannot work, one line for each."""


class Environment:
    """The values of settings: the process's own win over those in the file."""

    def __init__(self, process: Mapping[Text, Text], file: Path) -> None:
        self._problems: list[str] = []
        self._known = {"ENV_FILE", "SECRET_KEY"}
        self._file, self._in_file = file, self._read(file)
        self._values = {**self._in_file, **process}

    # --- Values, by their type ------------------------------------------------------------------

    def str(self, name: Text, default: Text) -> Text:
        self._known.add(name)
        return self._values.get(name, default)

    def list(self, name: Text, default: Names) -> Names:
        value = self.str(name, ",".join(default))
        return [item.strip() for item in value.split(",") if item.strip()]

    def bool(self, name: Text, default: Truth) -> Truth:
        return self._cast(name, default, _truth, "must be on or off")

    def decision(self, name: Text) -> Truth | None:
        """Return what a person has to decide; None where nobody has."""
        return self._cast(name, None, _truth, "must be on or off")

    def int(self, name: Text, default: Whole) -> Whole:
        return self._cast(name, default, Whole, "must be a whole number")

    def float(self, name: Text, default: Number) -> Number:
        return self._cast(name, default, _finite, "must be a number")

    def db(self, name: Text, default: Text) -> dict[Text, Any]:
        """Return Django's settings of a database. Its value is never shown: it holds a password."""
        value = self.str(name, default) or default
        try:
            found: dict[Text, Any] = environ.Env.db_url_config(value)
        except Exception:  # Whatever the parser meets, the value is wrong.
            found = {}
        if not found.get("ENGINE") or not _is_ours(value):
            self._problems.append(
                f"{name} must be postgres://user:password@host:5432/name or sqlite:////path/of/file"
                f"{_scheme_of(value)}; a special character in the password is written %XX."
            )
            found = environ.Env.db_url_config(default)
        return found

    def _cast(self, name: Text, default: T, cast: Callable[[Text], T], rule: Text) -> T:
        value = self.str(name, "").strip()
        if not value:
            return default
        try:
            return cast(value)
        except ValueError:
            self._problems.append(f"{name} {rule}, not {value[:40]!r}.")
            return default

    # --- What is wrong --------------------------------------------------------------------------

    def refuse(self) -> None:
        """Raise InvalidSettings if a value cannot work or a name is misspelt."""
        problems = [*self._problems, *self._misspelt()]
        if problems:
            raise InvalidSettings("\n".join(f"(config.E001) {line}" for line in problems))

    def has(self, name: Text) -> Truth:
        return name in self._values

    def unknown(self) -> Names:
        """Return the names in the file that are no setting."""
        return sorted(set(self._in_file) - self._known)

    def _misspelt(self) -> Iterator[Text]:
        for name in sorted(set(self._values) - self._known):
            meant = difflib.get_close_matches(name, self._known, 1, ALIKE)
            if meant and name.isupper():
                yield f"{name} is not a setting; did you mean {meant[0]}?"

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
                    f"Line {number} of {file} is not NAME=value, without blanks before the '='."
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


def _is_ours(address: str) -> bool:
    return re.match(r"(postgres|postgresql|sqlite)://", address) is not None


def _scheme_of(address: str) -> str:
    found = re.match(r"([a-z0-9+]{1,20})://", address)
    return f", not {found[1]}://…" if found and not _is_ours(address) else ""


def read() -> Environment:
    """Return this process's environment, with the file that ENV_FILE names."""
    file = Path(os.environ.get("ENV_FILE") or BASE_DIR / ".env")
    return Environment(dict(os.environ), file)


# --- What gunicorn needs before any of Django is there ------------------------------------------


@dataclass(frozen=True, slots=True)
class Server:
    """How the gateway is served."""

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
    """Return a line for each name that other programs set too, and that is not read here."""
    return [
        f"{name} is set, but this gateway reads GATEWAY_{name}."
        for name in ("HOST", "PORT")
        if env.has(name) and not env.has(f"GATEWAY_{name}")
    ]
