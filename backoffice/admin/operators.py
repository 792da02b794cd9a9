"""Users and groups. Only superusers grant permissions or set another user's password."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth import admin as auth_admin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from accounts import authors, customers
from backoffice.admin.base import RestrictedLookups, operator

if TYPE_CHECKING:
    _UserAdmin = auth_admin.UserAdmin[User]
else:
    _UserAdmin = auth_admin.UserAdmin

PERMISSION_FIELDS = ("is_staff", "is_superuser", "groups", "user_permissions")


def is_superuser(request: HttpRequest) -> bool:
    return bool(getattr(request.user, "is_superuser", False))


class UserAdmin(RestrictedLookups, _UserAdmin):
    """Django's UserAdmin, except that `auth.change_user` does not grant permissions."""

    actions = ["deactivate"]
    linked_by = ("groups__id__exact",)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (
            super().get_readonly_fields(request, obj)
            if is_superuser(request)
            else PERMISSION_FIELDS
        )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may_change(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may_change(request, obj) and super().has_delete_permission(request, obj)

    def get_actions(self, request: HttpRequest) -> Any:
        """Remove the deletion of several users: each must be checked for what the user has done."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def user_change_password(
        self,
        request: HttpRequest,
        id: str,  # noqa: A002  # Django's name.
        form_url: str = "",
    ) -> HttpResponse:
        """Set another user's password. Users change their own at /admin/password_change/."""
        if not is_superuser(request):
            raise PermissionDenied
        return super().user_change_password(request, id, form_url)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        user = self.get_object(request, object_id)
        if user is None or not (reason := reason_to_keep(user)):
            return super().delete_view(request, object_id, extra_context)
        if not self.has_delete_permission(request, user):
            raise PermissionDenied
        self.message_user(request, reason, messages.ERROR)
        return HttpResponseRedirect(reverse("admin:auth_user_change", args=[user.pk]))

    def delete_model(self, request: HttpRequest, obj: User) -> None:
        customers.delete_user(obj)

    @admin.action(description="Deactivate selected users", permissions=["change"])
    def deactivate(self, request: HttpRequest, users: QuerySet[User]) -> None:
        """Block the users' logins and keep the record of what they did."""
        active = users.exclude(pk=operator(request).pk).filter(is_active=True)
        others = [user for user in active if _may_change(request, user)]
        with transaction.atomic():
            for user in others:
                User.objects.filter(pk=user.pk).update(is_active=False)
                self.log_change(request, user, "Deactivated.")
        names = ", ".join(user.get_username() for user in others) or "no user"
        self.message_user(request, f"Deactivated: {names}.")


def reason_to_keep(user: User) -> str | None:
    """Return why a user cannot be deleted, None if nothing speaks against it. The sentence begins
    with the username, whose first letter Django capitalizes."""
    if authors.has_acted(user):
        return authors.USER_IS_KEPT.format(user=user)
    if account := customers.only_owner_of(user):
        return f"{user} is the only owner of {account}. Add another owner to the account first."
    return None


def _may_change(request: HttpRequest, user: Any) -> bool:
    return is_superuser(request) or not getattr(user, "is_superuser", False)


class GroupAdmin(RestrictedLookups, auth_admin.GroupAdmin):
    """A group grants permissions, so only superusers change it."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return is_superuser(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_superuser(request)


admin.site.unregister(User)
admin.site.unregister(Group)
admin.site.register(User, UserAdmin)
admin.site.register(Group, GroupAdmin)
