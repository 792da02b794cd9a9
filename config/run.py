"""`make run`: set up and start a gateway with one command.

Each step is a command that an operator could type. Steps that are done are skipped, so a second run
is fast and changes nothing. All processes that this starts end with it.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from config import __version__, environment, trial
from config.environment import BASE_DIR
from config.failures import in_one_line

ENV_FILE = Path(os.environ.get("ENV_FILE") or BASE_DIR / ".env")
DEMO_KEY_FILE = ENV_FILE.with_name(".demo-key")
DEMO_ACCOUNT, DEMO_CREDIT = "Demo", "25"
# People paste the printed curl elsewhere, so its key cannot pull or delete models, and it expires.
DEMO_SCOPES, DEMO_LIFETIME = ["infer", "usage"], timedelta(days=30)
EMBEDDED_MODEL = "smollm2:135m"
CHANGE_PASSWORD = ".venv/bin/python manage.py changepassword admin"
START_SECONDS = 60
# How long running responses may continue after Ctrl-C, and how long stopping may take in total.
GRACE_SECONDS, STOP_SECONDS = 3, 10


def main() -> None:
    os.umask(0o077)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    with in_one_line():
        run()


def run() -> None:
    write_env()
    env = environment.read()
    server = environment.read_server(env)
    address = server.host, server.port
    if not env.has("ACCESS_LOG"):
        os.environ["ACCESS_LOG"] = "off"
    prepare_settings()
    for line in environment.old_names(env):
        say(f"{line} It listens on {server.host}:{server.port}.")
    refuse_taken_port(*address)
    prepare_database()
    password = create_operator()
    key = demo_key()
    with contextlib.ExitStack() as started:
        started.enter_context(stopped_by_signals())
        model = started.enter_context(model_server())
        gateway = started.enter_context(serve(*address))
        show(address, password, key, model)
        gateway.wait()


# --- Steps, skipped if they are done -------------------------------------------------------------


def write_env() -> None:
    """Write `.env` with a new secret, unless the file exists."""
    if ENV_FILE.exists():
        return
    lines = [
        "# Settings of this gateway. docs/settings.md explains all of them.",
        f"SECRET_KEY={secrets.token_urlsafe(50)}",
        "# Set to on if customers who must not learn about each other share the model server.",
        "ISOLATE_PROMPTS=off",
        "# OLLAMA_BASE=http://127.0.0.1:11434",
        "# DATABASE_URL=postgres://user:password@host:5432/gateway",
    ]
    ENV_FILE.touch(mode=0o600)
    ENV_FILE.write_text("\n".join(lines) + "\n")


def refuse_taken_port(host: str, port: int) -> None:
    """Exit with one line if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            sys.exit(f"Cannot listen on {host}:{port}: {error.strerror}. Try: make run PORT=8001")


def prepare_settings() -> None:
    """Read the settings. An invalid one ends this program with one line."""
    import django

    django.setup()


def prepare_database() -> None:
    from django.core.management import call_command

    say("Preparing the database …")
    call_command("migrate", verbosity=0)
    call_command("seed_prices", verbosity=0, stdout=open(os.devnull, "w"))  # noqa: SIM115


def create_operator() -> str | None:
    """Create the admin login and return its password; None if a superuser exists."""
    from django.contrib.auth.models import User

    if User.objects.filter(is_superuser=True).exists():
        return None
    password = secrets.token_urlsafe(12)
    User.objects.create_superuser("admin", password=password)
    return password


def demo_key() -> str:
    """Return the key of the demo account. The first time, create the account with some credit."""
    from accounts import keys
    from accounts.models import Account

    account = Account.objects.filter(name=DEMO_ACCOUNT).first()
    if DEMO_KEY_FILE.exists() and is_usable(kept := DEMO_KEY_FILE.read_text().strip()):
        return kept
    if account is None:
        from django.core.management import call_command

        out = open(os.devnull, "w")  # noqa: SIM115
        call_command("create_account", DEMO_ACCOUNT, credit=DEMO_CREDIT, stdout=out)
        account = Account.objects.get(name=DEMO_ACCOUNT)
    _key, secret = keys.issue(
        account, name="make run", scopes=DEMO_SCOPES, expires_in=DEMO_LIFETIME
    )
    DEMO_KEY_FILE.touch(mode=0o600)
    DEMO_KEY_FILE.write_text(secret + "\n")
    return secret


def is_usable(secret: str) -> bool:
    """Return whether this database knows a key and the gateway would accept it."""
    from django.utils import timezone
    from knox.crypto import hash_token

    from accounts.models import ApiKey

    key = ApiKey.objects.filter(digest=hash_token(secret)).first()
    return key is not None and key.is_usable(timezone.now())


# --- Processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """End this program and its processes on SIGINT, SIGTERM and SIGHUP.

    A shell ignores SIGINT in background jobs, so it needs a handler too.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with contextlib.suppress(KeyboardInterrupt):
        yield


@contextlib.contextmanager
def model_server() -> Iterator[str | None]:
    """Use the Ollama at OLLAMA_BASE, or start the embedded engine there.

    Yields the name of a model that generates text, or None.
    """
    from django.conf import settings

    base = settings.OLLAMA_BASE
    if answers(f"{base}/api/version"):
        say(f"Using the Ollama at {base}.")
        yield trial.prepare(say, but_for=DEMO_ACCOUNT)
        return
    host, port = urlsplit(base).hostname or "", urlsplit(base).port or 11434
    if host not in ("127.0.0.1", "localhost"):
        sys.exit(f"No Ollama answers at OLLAMA_BASE={base}, and the embedded engine is local only.")
    say(f"No Ollama answers at {base}: starting the embedded engine …")
    command = ["embedded_ollama", "--host", "127.0.0.1", "--port", str(port)]
    with process([sys.executable, "manage.py", *command]) as engine:
        wait_for(f"{base}/api/version", engine)
        yield EMBEDDED_MODEL


@contextlib.contextmanager
def serve(host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    os.environ.update(GATEWAY_HOST=host, GATEWAY_PORT=str(port), DRAIN_SECONDS=str(GRACE_SECONDS))
    command = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.py", "config.wsgi"]
    with process([*command, "--log-level", "warning"]) as gateway:
        wait_for(f"{url_of(host, port)}/healthz", gateway)
        yield gateway


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and end it with this one.

    It gets its own process group. So Ctrl-C reaches only this program, which stops the others in
    order.
    """
    running = subprocess.Popen(command, cwd=BASE_DIR, start_new_session=True)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(timeout=STOP_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            running.kill()  # It does not end, or Ctrl-C was pressed again.
            running.wait()


def wait_for(url: str, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if running.poll() is not None:
            sys.exit("A process ended before it was ready. See its message above.")
        if time.monotonic() > deadline:
            sys.exit(f"{url} does not respond after {START_SECONDS} seconds.")
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


# --- Output --------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(text, flush=True)


def url_of(host: str, port: int) -> str:
    """Return the URL to call. For 0.0.0.0 and :: it has the loopback address."""
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104
    return (
        f"http://[{address}]:{port}" if ":" in address.strip("[]") else f"http://{address}:{port}"
    )


def show(address: tuple[str, int], password: str | None, key: str, model: str | None) -> None:
    url = url_of(*address)
    login = f"admin / {password}" if password else f"your password; to change it: {CHANGE_PASSWORD}"
    say(f"""
Ollama gateway {__version__} is ready.

  Address  {url}
  Admin    {url}/admin/   {login}
  Key      {key}
{first_request(url, key, model)}
Ctrl-C stops everything.
""")


def first_request(url: str, key: str, model: str | None) -> str:
    """Return a request to paste. It streams: a whole response takes long on a small machine."""
    if model is None:
        return (
            "\nNo installed model generates text. Run `ollama pull llama3.2`, then start again.\n"
        )
    return f"""
Paste this:

  curl -N {url}/generate \\
    -H 'Authorization: Bearer {key}' \\
    -d '{{"model": "{model}", "prompt": "Why is the sky blue?", "stream": true}}'
"""


if __name__ == "__main__":
    main()
