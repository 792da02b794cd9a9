"""Settings of the gateway, top to bottom. Values come from the environment or from `.env`."""

from datetime import timedelta

from config import __version__, environment
from config.environment import BASE_DIR
from config.security_log import in_one_line
from gateway.http import origins

env = environment.read()
VERSION = __version__

# --- Hosts, sessions and TLS ----------------------------------------------------------------

# Not empty, so that the check accounts.E001 reports it instead of a traceback.
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
# The TLS proxy sends redirects and HSTS. Without a proxy there is no TLS.
SILENCED_SYSTEM_CHECKS = ["security.W004", "security.W008", "security.W012", "security.W016"]
X_FRAME_OPTIONS = "DENY"

# --- Applications ---------------------------------------------------------------------------

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

# A request passes these from top to bottom.
MIDDLEWARE = [
    "gateway.http.middleware.attach_context",
    # Above all that answers: a browser hides even an error from a page without these headers.
    "corsheaders.middleware.CorsMiddleware",
    "gateway.http.middleware.content_policy",
    # Before everything that reads a form, a cookie or a query.
    "gateway.http.early_checks.RefuseEarly",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    # Before everything that uses the database.
    "accounts.connections.release_after_view",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "gateway.http.middleware.CheckedHost",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    # Last, next to the view: attaches a meter to each request.
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
# Static files are read from the apps, so collectstatic is not needed.
WHITENOISE_USE_FINDERS = True

# --- Database -------------------------------------------------------------------------------

DATABASES = {"default": env.db("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}")}
DATABASE_POOL_SIZE: int = env.int("DATABASE_POOL_SIZE", default=8)
# How long the gateway waits for one statement. Management commands wait as long as it takes.
DATABASE_ANSWER_SECONDS: float = env.float("DATABASE_ANSWER_SECONDS", default=2.5)

# Options in the query of DATABASE_URL, such as `?sslmode=verify-full`, are kept.
_OPTIONS = DATABASES["default"].get("OPTIONS", {})

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["ENGINE"] = "config.sqlite"
    # A thread keeps its connection: closing the last one costs a checkpoint.
    DATABASES["default"]["CONN_MAX_AGE"] = None
    DATABASES["default"]["OPTIONS"] = {
        # A transaction that reads and then writes must take the write lock at its start:
        # a DEFERRED one fails at once when another writer came in between.
        "transaction_mode": "IMMEDIATE",
        # Seconds to wait for the write lock: longer than a full gateway needs, short for a client.
        "timeout": 10,
        # FULL, because the last commit may be a bill and must survive a power failure.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        **_OPTIONS,
    }
elif DATABASES["default"]["ENGINE"] == "django.db.backends.postgresql":
    from psycopg import IsolationLevel

    from config.postgresql.base import PatientConnection

    DATABASES["default"]["ENGINE"] = "config.postgresql"
    # At a stricter default level of the database, concurrent requests of an account would fail.
    _PINNED = {"isolation_level": IsolationLevel.READ_COMMITTED}
    DATABASES["default"]["OPTIONS"] = {**_OPTIONS, **_PINNED}
    if DATABASE_POOL_SIZE:
        # A request uses a connection for a few statements and returns it before a response
        # streams, so a few connections serve hundreds of streams.
        DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
        DATABASES["default"]["OPTIONS"] = {
            "connect_timeout": 3,
            "pool": {
                "connection_class": PatientConnection,
                "min_size": 1,
                "max_size": DATABASE_POOL_SIZE,
                # A request gets 503 if the pool handed out no connection for this long.
                "timeout": 2,
                # While the database is away, each request tries to connect. The pool's own retries
                # double their pause each time, and would notice its return late.
                "reconnect_timeout": 1,
            },
            **_OPTIONS,
            **_PINNED,
        }

# --- Time, language and logs ----------------------------------------------------------------

USE_TZ = True
TIME_ZONE = "UTC"  # Bills use UTC days and months.
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
        # A 4xx is the client's error, and the access log has it.
        "django.request": {"level": "ERROR"},
        # So is an unknown Host, and a client could fill the log with it.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "urllib3": {"level": "ERROR"},
        # It logs every attempt to connect. The request that waits logs the reason.
        "psycopg.pool": {"level": "ERROR"},
    },
}

# --- API keys (knox) and passwords ----------------------------------------------------------

KNOX_TOKEN_MODEL = "accounts.ApiKey"
# ApiKey replaces knox's table, which its migrations would create nevertheless.
MIGRATION_MODULES = {"knox": None}
REST_KNOX = {
    "TOKEN_TTL": None,
    "TOKEN_PREFIX": "olg_",
    "AUTH_HEADER_PREFIX": "Bearer",
}
# A key's "last used" is written at most once in this time, not with each request.
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
    # gateway/validation/bodies.py reads bodies. It rejects some that this parser would accept.
    "DEFAULT_PARSER_CLASSES": [],
    "DEFAULT_THROTTLE_CLASSES": [],
    "DEFAULT_METADATA_CLASS": None,  # OPTIONS would describe the code.
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "gateway.http.negotiation.OneFormat",
    "UNAUTHENTICATED_USER": None,
    "EXCEPTION_HANDLER": "gateway.http.error_handlers.handle",
}

# --- Gateway: the model server and the limits of a request ----------------------------------

OLLAMA_BASE: str = env.str("OLLAMA_BASE", default="http://127.0.0.1:11434").rstrip("/")
# The age up to which lists of the model server's models, and that a model is missing, are cached.
INVENTORY_SECONDS: float = env.float("INVENTORY_SECONDS", default=1.0)
UPSTREAM_CONNECT_SECONDS: float = env.float("UPSTREAM_CONNECT_SECONDS", default=2.0)
# Loading a large model from a slow disk takes minutes, during which nothing is sent.
UPSTREAM_FIRST_LINE_SECONDS: float = env.float("UPSTREAM_FIRST_LINE_SECONDS", default=600.0)
# A model that generates a large tool call sends nothing in the middle of a stream.
UPSTREAM_SILENCE_SECONDS: float = env.float("UPSTREAM_SILENCE_SECONDS", default=180.0)
UPSTREAM_TOTAL_SECONDS: float = env.float("UPSTREAM_TOTAL_SECONDS", default=1800.0)
# After SIGTERM, running responses may continue for this long. gunicorn waits 5 seconds more.
DRAIN_SECONDS: float = env.float("DRAIN_SECONDS", default=25.0)
# After a client disconnects in a stream, wait this long for the model server's counts. Many clients
# disconnect at a tool call, and the counts follow it at once.
DISCONNECT_GRACE_MS: int = env.int("DISCONNECT_GRACE_MS", default=250)
# In a silent stream, clients that support it get a keep-alive this often.
KEEP_ALIVE_SECONDS: float = env.float("KEEP_ALIVE_SECONDS", default=10.0)
# A model that sends nothing for this long after the client of a request with a schema disconnected
# is unloaded.
STUCK_MODEL_SECONDS: float = env.float("STUCK_MODEL_SECONDS", default=20.0)

MAX_BODY_BYTES: int = env.int("MAX_BODY_BYTES", default=32 * 1024 * 1024)
# A body of millions of brackets costs much memory. A chat of 1,000 messages has 5,000 values.
MAX_JSON_VALUES: int = env.int("MAX_JSON_VALUES", default=50_000)
MAX_PROMPT_BYTES: int = env.int("MAX_PROMPT_BYTES", default=1024 * 1024)
MAX_IMAGES: int = env.int("MAX_IMAGES", default=8)
MAX_IMAGE_BYTES: int = env.int("MAX_IMAGE_BYTES", default=8 * 1024 * 1024)
MAX_EMBED_INPUTS: int = env.int("MAX_EMBED_INPUTS", default=2048)
# Texts in one call to the model server. Other requests are served between two calls.
EMBED_BATCH_INPUTS: int = env.int("EMBED_BATCH_INPUTS", default=16)
DEFAULT_COMPLETION_TOKENS: int = env.int("DEFAULT_COMPLETION_TOKENS", default=2048)
MAX_COMPLETION_TOKENS: int = env.int("MAX_COMPLETION_TOKENS", default=8192)
# Limits of a JSON schema, which one thread evaluates for all customers of a model.
MAX_SCHEMA_BYTES: int = env.int("MAX_SCHEMA_BYTES", default=32 * 1024)
MAX_SCHEMA_DEPTH: int = env.int("MAX_SCHEMA_DEPTH", default=64)
MAX_SCHEMA_ENUM_VALUES: int = env.int("MAX_SCHEMA_ENUM_VALUES", default=500)
MAX_SCHEMA_BRANCHES: int = env.int("MAX_SCHEMA_BRANCHES", default=100)
MAX_SCHEMA_OPTIONAL_PROPERTIES: int = env.int("MAX_SCHEMA_OPTIONAL_PROPERTIES", default=300)
MAX_SCHEMA_EMPTY_REPETITIONS: int = env.int("MAX_SCHEMA_EMPTY_REPETITIONS", default=4)
# Whether timing reveals other accounts' prompts. `check --deploy` fails while it is None.
ISOLATE_PROMPTS: bool | None = env.decision("ISOLATE_PROMPTS")
PULL_REGISTRIES: list[str] = env.list("PULL_REGISTRIES", default=["registry.ollama.ai"])
# Those without TLS, or with a certificate that the model server does not trust.
PULL_INSECURE_REGISTRIES: list[str] = env.list("PULL_INSECURE_REGISTRIES", default=[])

# --- Billing --------------------------------------------------------------------------------

CURRENCY: str = env.str("CURRENCY", default="USD")
# Bill the delivered tokens of a response that the model server or the gateway interrupted. A client
# that disconnects pays in any case.
BILL_INTERRUPTED: bool = env.bool("BILL_INTERRUPTED", default=True)
# A hold whose process does not renew it for this long is abandoned and settled.
HOLD_LEASE_SECONDS: float = env.float("HOLD_LEASE_SECONDS", default=30.0)
# Where settlements are kept that could not be written while the database was away.
JOURNAL_DIR: str = env.str("JOURNAL_DIR", default=str(BASE_DIR / "journal"))

# --- Validation -----------------------------------------------------------------------------

environment.read_server(env)  # gunicorn reads these; an invalid one is reported here too.
env.refuse()
