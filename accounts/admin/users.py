"""Operators and the people of accounts. Only superusers give rights, or open somebody's door."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth import admin as auth_admin
from django.contrib.auth.models import Group, User
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from accounts import authors
from accounts.admin.base import OwnLookups, operator

if TYPE_CHECKING:
    _UserAdmin = auth_admin.UserAdmin[User]
else:
    _UserAdmin = auth_admin.UserAdmin

RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")


def is_superuser(request: HttpRequest) -> bool:
    return bool(getattr(request.user, "is_superuser", False))


class OperatorAdmin(OwnLookups, _UserAdmin):
    """Django's own, in which `auth.change_user` gives nobody more rights than they have."""

    actions = ["deactivate"]
    linked_by = ("groups__id__exact",)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return super().get_readonly_fields(request, obj) if is_superuser(request) else RIGHTS

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may_touch(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may_touch(request, obj) and super().has_delete_permission(request, obj)

    def get_actions(self, request: HttpRequest) -> Any:
        """Offer no deletion of many: each is asked for what it has done."""
        actions = super().get_actions(request)
        actions.pop("delete_selected", None)
        return actions

    def user_change_password(
        self,
        request: HttpRequest,
        id: str,  # noqa: A002  # Django's name.
        form_url: str = "",
    ) -> HttpResponse:
        """Set a password: one's own at /admin/password_change/, another's as a superuser alone."""
        if not is_superuser(request):
            raise PermissionDenied
        return super().user_change_password(request, id, form_url)

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: Any = None
    ) -> HttpResponse:
        user = self.get_object(request, object_id)
        if user is None or not authors.has_acted(user):
            return super().delete_view(request, object_id, extra_context)
        if not self.has_delete_permission(request, user):
            raise PermissionDenied
        self.message_user(request, authors.KEPT.format(user=user), messages.ERROR)
        return HttpResponseRedirect(reverse("admin:auth_user_change", args=[user.pk]))

    @admin.action(description="Deactivate selected users", permissions=["change"])
    def deactivate(self, request: HttpRequest, users: QuerySet[User]) -> None:
        """End their logins and their keys, and keep what they did."""
        chosen = users.exclude(pk=operator(request).pk).filter(is_active=True)
        others = [user for user in chosen if _may_touch(request, user)]
        with transaction.atomic():
            for user in others:
                User.objects.filter(pk=user.pk).update(is_active=False)
                self.log_change(request, user, "Deactivated.")
        names = ", ".join(user.get_username() for user in others) or "nobody"
        self.message_user(request, f"Deactivated: {names}.")


def _may_touch(request: HttpRequest, user: Any) -> bool:
    return is_superuser(request) or not getattr(user, "is_superuser", False)


class RoleAdmin(OwnLookups, auth_admin.GroupAdmin):
    """A group is rights: only superusers change what it gives."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return is_superuser(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_superuser(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return is_superuser(request)


admin.site.unregister(User)
admin.site.unregister(Group)
admin.site.register(User, OperatorAdmin)
admin.site.register(Group, RoleAdmin)
