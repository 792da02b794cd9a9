"""Whether a key has the scope that a view requires."""

from typing import TYPE_CHECKING

from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from accounts.models import ApiKey

if TYPE_CHECKING:
    # REST framework's views import the permission classes, and thus this module.
    from rest_framework.views import APIView


class HasScope(BasePermission):
    """Allow a key that has the view's `required_scope`. A view without one allows no key."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        key = request.auth
        if not isinstance(key, ApiKey):
            raise NotAuthenticated("Send your API key as 'Authorization: Bearer olg_...'.")
        scope = getattr(view, "required_scope", None)
        if scope is None or not key.allows(scope):
            raise PermissionDenied(f"This key does not have the scope '{scope}'.")
        return True
