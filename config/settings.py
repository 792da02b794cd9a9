"""Settings of the gateway, top to bottom. Values come from the environment or from `.env`."""

from datetime import timedelta

from config import environment
from config.environment import BASE_DIR
from config.security_log import in_one_line
from gateway.http import origins

env = environment.read()

# --- Who may talk to us ---------------------------------------------------------------------

# Not empty, so that our own check can say what to do instead of a traceback.
SECRET_KEY: str = env.str("SECRET_KEY", default="") or "missing"
DEBUG: bool = env.bool("DEBUG", default=False)
ALLOWED_HOSTS: list[str] = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS: list[str] = env.list("CSRF_TRUSTED_ORIGINS", default=[])
# Web pages of these origins may call the API, besides those of this machine and of desktop apps.
# They need a key like everybody else. The pages with a session never take part.
ALLOWED_ORIGINS: list[str] = env.list("ALLOWED_ORIGINS", default=[])
CORS_ALLOW_ALL_ORIGINS = "*" in ALLOWED_ORIGINS
CORS_ALLOWED_ORIGIN_REGEXES = [
    origins.pattern(origin) for origin in (*origins.DEFAULT, *ALLOWED_ORIGINS)
]
CORS_URLS_REGEX = r"^/(?!admin(?:/|\Z)|portal(?:/|\Z)|static/)"
CORS_ALLOW_METHODS = ["GET", "HEAD", "POST", "DELETE"]
# The star does not cover Authorization.
CORS_ALLOW_HEADERS = ["*", "authorization"]
CORS_EXPOSE_HEADERS = ["x-request-id", "request-id", "retry-after", "x-should-retry"]
# A page on the internet may call a gateway in a private network, if its origin is allowed.
CORS_ALLOW_PRIVATE_NETWORK = True
# On when a TLS proxy stands in front and overwrites X-Forwarded-Proto.
BEHIND_TLS_PROXY: bool = env.bool("BEHIND_TLS_PROXY", default=False)
if BEHIND_TLS_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
LOGIN_REDIRECT_URL = "admin:index"
SESSION_COOKIE_SAMESITE = "Strict"
SESSION_COOKIE_AGE = 8 * 60 * 60
SECURE_REFERRER_POLICY = "same-origin"
# Redirects to TLS, HSTS and what follows are the proxy's, or there is no TLS at all.
SILENCED_SYSTEM_CHECKS = ["security.W004", "security.W008", "security.W012", "security.W016"]
X_FRAME_OPTIONS = "DENY"

# --- The house ------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "corsheaders",
    "knox",
    "accounts",
    "gateway",
    "billing",
    "backoffice",
    "embedded",
]

# Read top to bottom: this is the way of a request.
MIDDLEWARE = [
    "gateway.http.middleware.attach_context",
    # Above all that answers: a browser hides even an error from a page without these headers.
    "corsheaders.middleware.CorsMiddleware",
    "gateway.http.middleware.content_policy",
    # Above all that reads a form, a cookie or a query.
    "gateway.http.early_checks.RefuseEarly",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    # Above all that uses the database.
    "accounts.connections.release_after_view",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "gateway.http.middleware.CheckedHost",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # Last, next to the view: hands each request its meter.
    "billing.middleware.attach_meter",
]

# Functions that an app calls but may not import (docs/architecture.md, the layers).
MODEL_CHECK = "billing.price_book.not_for_sale"
BOOKS = "billing.books.LedgerBooks"
USABLE_MODELS = "gateway.views.model_access.usable_models"
INSTALLED_MODELS = "gateway.scheduling.inventory.installed_models"

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
APPEND_SLASH = False
FILE_UPLOAD_HANDLERS = ["gateway.http.uploads.NoUploads"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

STATIC_URL = "static/"
# Static files are read where the apps keep them: no collectstatic step to forget.
WHITENOISE_USE_FINDERS = True

# --- Database -------------------------------------------------------------------------------

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
DATABASE_POOL_SIZE: int = env.int("DATABASE_POOL_SIZE", default=8)
# How long the gateway waits for one statement. Management commands wait as long as it takes.
DATABASE_ANSWER_SECONDS: float = env.float("DATABASE_ANSWER_SECONDS", default=2.5)

# What stands in the address's query, as `?sslmode=verify-full`, is kept.
_OPTIONS = DATABASES["default"].get("OPTIONS", {})

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["ENGINE"] = "config.sqlite"
    # A thread keeps its connection: whoever closes the last one pays for a checkpoint.
    DATABASES["default"]["CONN_MAX_AGE"] = None
    DATABASES["default"]["OPTIONS"] = {
        # A transaction that reads and then writes must take the write lock at its start:
        # a DEFERRED one fails at once when another writer came in between.
        "transaction_mode": "IMMEDIATE",
        # Seconds to wait for the write lock: long for any crowd of ours, short for a client.
        "timeout": 10,
        # FULL, since the last commit may be somebody's bill and must survive a power cut.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        **_OPTIONS,
    }
elif DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
    from psycopg import IsolationLevel

    from config.postgresql.base import PatientConnection

    DATABASES["default"]["ENGINE"] = "config.postgresql"
    # Under a stricter level of the database's own, requests of one account would fail each other.
    _PINNED = {"isolation_level": IsolationLevel.READ_COMMITTED}
    DATABASES["default"]["OPTIONS"] = {**_OPTIONS, **_PINNED}
    if DATABASE_POOL_SIZE:
        # Connections are lent for a few statements and never kept while an answer streams,
        # so a few of them serve hundreds of streams.
        DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
        DATABASES["default"]["OPTIONS"] = {
            "connect_timeout": 3,
            "pool": {
                "connection_class": PatientConnection,
                "min_size": 1,
                "max_size": DATABASE_POOL_SIZE,
                # If nobody got a connection for so long, a request is answered 503.
                "timeout": 2,
                # While the database is away each request tries anew. The pool's own patience would
                # wait twice as long each time, and find it back as late again as it was away.
                "reconnect_timeout": 1,
            },
            **_OPTIONS,
            **_PINNED,
        }

# --- Time, language, log --------------------------------------------------------------------

USE_TZ = True
TIME_ZONE = "UTC"  # Days and months of the bill are UTC days and months.
USE_I18N = False
LANGUAGE_CODE = "en-us"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
    },
    "filters": {
        "one_line": {"()": "django.utils.log.CallbackFilter", "callback": in_one_line},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "filters": ["one_line"],
        },
    },
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        # A 4xx is the client's business and stands in the access log already.
        "django.request": {"level": "ERROR"},
        # So is a foreign Host, which anybody can send a thousand times.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "urllib3": {"level": "ERROR"},
        # Each of its tries to connect; who waits for it says why there is no connection.
        "psycopg.pool": {"level": "ERROR"},
    },
}

# --- Keys (knox) ----------------------------------------------------------------------------

KNOX_TOKEN_MODEL = "accounts.ApiKey"
# Our keys replace knox's own table, and its migrations would make it all the same.
MIGRATION_MODULES = {"knox": None}
REST_KNOX = {
    "TOKEN_TTL": None,
    "TOKEN_PREFIX": "olg_",
    "AUTH_HEADER_PREFIX": "Bearer",
}
# How coarsely "last used" is kept; a busy key costs one write in this time, not one a request.
LAST_USED_EVERY = timedelta(seconds=60)

AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

# --- REST framework -------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["accounts.permissions.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    # Bodies are read by validation/bodies.py, which refuses what this parser would let pass.
    "DEFAULT_PARSER_CLASSES": [],
    "DEFAULT_THROTTLE_CLASSES": [],
    "DEFAULT_METADATA_CLASS": None,  # OPTIONS would describe our code.
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "gateway.http.negotiation.OneFormat",
    "UNAUTHENTICATED_USER": None,
    "EXCEPTION_HANDLER": "gateway.http.error_handlers.handle",
}

# --- Gateway: the model server and what may be asked of it ----------------------------------

OLLAMA_BASE: str = env.str("OLLAMA_BASE", default="http://127.0.0.1:11434").rstrip("/")
# How old may be what is told of the model server's models: lists, and that one is missing.
INVENTORY_SECONDS: float = env.float("INVENTORY_SECONDS", default=1.0)
UPSTREAM_CONNECT_SECONDS: float = env.float("UPSTREAM_CONNECT_SECONDS", default=2.0)
# Loading a large model from a slow disk takes minutes, and nothing is sent meanwhile.
UPSTREAM_FIRST_LINE_SECONDS: float = env.float("UPSTREAM_FIRST_LINE_SECONDS", default=600.0)
# A model that writes a large tool call is silent in mid-stream.
UPSTREAM_SILENCE_SECONDS: float = env.float("UPSTREAM_SILENCE_SECONDS", default=180.0)
UPSTREAM_TOTAL_SECONDS: float = env.float("UPSTREAM_TOTAL_SECONDS", default=1800.0)
# After a request to end, running answers may go on for this long. gunicorn waits 5 seconds more.
DRAIN_SECONDS: float = env.float("DRAIN_SECONDS", default=25.0)
# After a client has left in mid-stream, the model server's own counts are waited for so long: they
# come a moment after a tool call, with which many clients leave.
DISCONNECT_GRACE_MS: int = env.int("DISCONNECT_GRACE_MS", default=250)
# Clients that can take it get a sign of life in a silent stream this often.
KEEP_ALIVE_SECONDS: float = env.float("KEEP_ALIVE_SECONDS", default=10.0)
# A model that is silent for so long, after a client left a request with a schema, is unloaded.
STUCK_MODEL_SECONDS: float = env.float("STUCK_MODEL_SECONDS", default=20.0)

MAX_BODY_BYTES: int = env.int("MAX_BODY_BYTES", default=32 * 1024 * 1024)
# A body of millions of brackets is dear to parse; a chat of a thousand messages has five thousand.
MAX_JSON_VALUES: int = env.int("MAX_JSON_VALUES", default=50_000)
MAX_PROMPT_BYTES: int = env.int("MAX_PROMPT_BYTES", default=1024 * 1024)
MAX_IMAGES: int = env.int("MAX_IMAGES", default=8)
MAX_IMAGE_BYTES: int = env.int("MAX_IMAGE_BYTES", default=8 * 1024 * 1024)
MAX_EMBED_INPUTS: int = env.int("MAX_EMBED_INPUTS", default=2048)
# Texts of one call to the model server; between two calls others have their turn.
EMBED_BATCH_INPUTS: int = env.int("EMBED_BATCH_INPUTS", default=16)
DEFAULT_COMPLETION_TOKENS: int = env.int("DEFAULT_COMPLETION_TOKENS", default=2048)
MAX_COMPLETION_TOKENS: int = env.int("MAX_COMPLETION_TOKENS", default=8192)
# Bounds of a JSON schema, which one thread follows for all customers of a model.
MAX_SCHEMA_BYTES: int = env.int("MAX_SCHEMA_BYTES", default=32 * 1024)
MAX_SCHEMA_DEPTH: int = env.int("MAX_SCHEMA_DEPTH", default=64)
MAX_SCHEMA_ENUM_VALUES: int = env.int("MAX_SCHEMA_ENUM_VALUES", default=500)
MAX_SCHEMA_BRANCHES: int = env.int("MAX_SCHEMA_BRANCHES", default=100)
MAX_SCHEMA_OPTIONAL_PROPERTIES: int = env.int("MAX_SCHEMA_OPTIONAL_PROPERTIES", default=300)
MAX_SCHEMA_EMPTY_REPETITIONS: int = env.int("MAX_SCHEMA_EMPTY_REPETITIONS", default=4)
# Keep accounts from finding out by timing what others ask? `check --deploy` asks where it is None.
ISOLATE_PROMPTS: bool | None = env.decision("ISOLATE_PROMPTS")
PULL_REGISTRIES: list[str] = env.list("PULL_REGISTRIES", default=["registry.ollama.ai"])
# Of these, the ones without TLS, or with a certificate that the model server does not trust.
PULL_INSECURE_REGISTRIES: list[str] = env.list("PULL_INSECURE_REGISTRIES", default=[])

# --- Billing --------------------------------------------------------------------------------

CURRENCY: str = env.str("CURRENCY", default="USD")
# Bill what was delivered of a response that the model server or the gateway interrupted. A client
# that disconnects pays in any case.
BILL_INTERRUPTED: bool = env.bool("BILL_INTERRUPTED", default=True)
# A hold whose process shows no life for this long belongs to nobody and is settled.
HOLD_LEASE_SECONDS: float = env.float("HOLD_LEASE_SECONDS", default=30.0)
# Where endings are kept that could not be settled while the database was away.
JOURNAL_DIR: str = env.str("JOURNAL_DIR", default=str(BASE_DIR / "journal"))

# --- The end --------------------------------------------------------------------------------

environment.read_server(env)  # gunicorn reads these itself; a bad one is named here too.
env.refuse()
