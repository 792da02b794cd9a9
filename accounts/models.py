"""The customer that pays (Account), its users (Membership) and its API keys (ApiKey)."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Case, Q, Value, When
from django.db.models.functions import Lower
from knox.models import AbstractAuthToken, AuthTokenManager

from accounts.names import refuse_unseen


class Scope(models.TextChoices):
    """An operation that a key allows."""

    INFER = "infer", "Run models"
    USAGE = "usage", "Read usage"
    MODELS = "models", "Pull and delete models"


CUSTOMER_SCOPES = [Scope.INFER.value, Scope.USAGE.value]


def customer_scopes() -> list[str]:
    return list(CUSTOMER_SCOPES)


class Account(models.Model):  # type: ignore[django-manager-missing]  # knox has no types
    """The customer that pays."""

    class Status(models.TextChoices):
        ACTIVE = "active", "Active"
        SUSPENDED = "suspended", "Suspended"

    name = models.CharField(max_length=100, unique=True, validators=[refuse_unseen])
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.ACTIVE)
    isolate_prompts = models.BooleanField(
        null=True,
        blank=True,
        choices=[(None, "As the setting ISOLATE_PROMPTS"), (True, "On"), (False, "Off")],
        help_text="On: response times do not reveal to other accounts what this account asks.",
    )
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, through="Membership")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            # Commands take names, and two names that differ in case alone would be confused.
            models.UniqueConstraint(
                Lower("name"),
                name="account_names_in_any_case",
                violation_error_message="There is an account of this name already.",
            )
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_active(self) -> bool:
        return self.status == self.Status.ACTIVE


class Membership(models.Model):
    """A user's role in an account."""

    class Role(models.TextChoices):
        OWNER = "owner", "Owner"
        MEMBER = "member", "Member"

    account = models.ForeignKey(Account, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships"
    )
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.MEMBER)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "user"], name="one_membership_per_person")
        ]

    def __str__(self) -> str:
        return f"{self.user} ({self.role}) in {self.account}"


class LoginCount(models.Model):
    """Wrong passwords for a username, an address or both (`login_guard.py`)."""

    whose = models.CharField(max_length=64, unique=True)
    wrong = models.IntegerField(default=0)
    # A user of this name has logged in from this address.
    known = models.BooleanField(default=False)
    wait_until = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["known", "last_at"], name="logins_by_age")]

    def __str__(self) -> str:
        return f"{self.wrong} wrong"


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    """The rule of `ApiKey.is_usable`, for many keys in one query."""

    def usable(self, now: datetime) -> "ApiKeyQuerySet":
        """Keep the keys that authentication accepts."""
        lasting = Q(expiry=None) | Q(expiry__gt=now)
        return self.filter(lasting, revoked_at=None, account__status=Account.Status.ACTIVE)

    def with_state(self, now: datetime) -> Any:
        """Annotate each key with its ApiKey.State as `state`."""
        state = Case(
            When(revoked_at__isnull=False, then=Value(ApiKey.State.REVOKED.value)),
            When(expiry__lte=now, then=Value(ApiKey.State.EXPIRED.value)),
            When(
                account__status=Account.Status.SUSPENDED, then=Value(ApiKey.State.SUSPENDED.value)
            ),
            default=Value(ApiKey.State.VALID.value),
            output_field=models.CharField(),
        )
        return self.annotate(state=state)


class ApiKey(AbstractAuthToken):
    """An API key of an account: knox's token with a primary key of its own.

    The digest is unique but not the primary key, so that a usage row refers to a key by eight
    bytes. Keys are revoked, never deleted, because their usage refers to them.
    """

    class State(models.TextChoices):
        """Whether a key is accepted, and if not, why."""

        VALID = "valid", "Valid"
        SUSPENDED = "account suspended", "Account suspended"
        EXPIRED = "expired", "Expired"
        REVOKED = "revoked", "Revoked"

    id = models.BigAutoField(primary_key=True)
    digest = models.CharField(max_length=128, unique=True, editable=False)
    # Only knox's look-up reads this column. Ours uses the digest, so no index is needed.
    token_key = models.CharField(max_length=25, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="auth_token_set"
    )
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="keys")
    name = models.CharField(max_length=100, validators=[refuse_unseen])
    last_four = models.CharField(max_length=4, editable=False)
    scopes = models.JSONField(default=customer_scopes)
    allowed_models = models.JSONField(
        default=list, blank=True, help_text="Names of models. Empty: every model."
    )
    issued_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.PROTECT, related_name="+"
    )
    author = models.CharField(
        max_length=200, help_text="The operator's name at that time, or the user of the command."
    )
    # Identifies the form that issued the key: submitted twice, it must not issue two keys.
    form_nonce = models.UUIDField(null=True, unique=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    # knox's `create` returns the row and the secret.
    objects = AuthTokenManager.from_queryset(ApiKeyQuerySet)()

    class Meta:
        ordering = ["-id"]
        verbose_name = "API key"
        verbose_name_plural = "API keys"
        # An operator who issues keys need not be allowed to let customers delete models.
        permissions = [("grant_models_scope", "Can issue keys that pull and delete models")]

    def __str__(self) -> str:
        return f"{self.name} (…{self.last_four})"

    def has_ended(self, now: datetime) -> bool:
        """Return whether the key was revoked or has expired."""
        return self.revoked_at is not None or (self.expiry is not None and self.expiry <= now)

    def is_usable(self, now: datetime) -> bool:
        """Return whether authentication accepts the key."""
        return not self.has_ended(now) and self.account.is_active

    def allows(self, scope: str) -> bool:
        return scope in self.scopes

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise models.ProtectedError("Keys are revoked, never deleted.", {self})
