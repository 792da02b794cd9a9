"""Settings of the tests: the production settings with a test secret and without `.env`."""

import os
import tempfile
from datetime import timedelta

os.environ.setdefault("SECRET_KEY", "a-secret-for-tests-that-is-long-enough-to-pass-its-own-check")
os.environ["OLLAMA_BASE"] = "http://127.0.0.1:9"  # Nobody listens there; a test brings its own.
os.environ["DATABASE_POOL_SIZE"] = "0"
# Tests compare what the model server gets with what was sent; those of isolation turn it on.
os.environ.setdefault("ISOLATE_PROMPTS", "off")
os.environ.setdefault("DATABASE_URL", f"sqlite:///{tempfile.gettempdir()}/gateway-tests.sqlite3")

from config.settings import *  # noqa: F403
from config.settings import DATABASES

# A test that counts queries must not meet the one that is written once a minute.
LAST_USED_EVERY = timedelta(days=1)
JOURNAL_DIR = tempfile.mkdtemp(prefix="gateway-journal-")
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
if DATABASES["default"]["ENGINE"] == "config.sqlite":
    # A file, not memory: threads of a test must meet in the same database, as in production.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    name = f"{tempfile.gettempdir()}/gateway-tests-{os.getpid()}{worker}.sqlite3"
    DATABASES["default"]["TEST"] = {"NAME": name}
