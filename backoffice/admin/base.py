"""What all pages of the back-office share.

Rows are never deleted. A form that writes is a plain form, and its view calls the one function that
may write the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django import forms
from django.contrib import admin
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DataError
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.template.response import TemplateResponse
from django.utils.text import capfirst

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin


def operator(request: HttpRequest) -> User:
    assert isinstance(request.user, User)  # The admin requires a login.
    return request.user


class RestrictedLookups(_ModelAdmin):
    """A list that accepts only the lookups in its URL that the back-office's own links use.

    Any other lookup could reveal a hidden column bit by bit, and Django fails on some of them.
    """

    # Lookups that links on other pages use.
    linked_by: tuple[str, ...] = ()

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        return lookup in self.linked_by or lookup in self._filtered_by()

    def _filtered_by(self) -> Iterator[str]:
        filters: Any = self.list_filter
        for item in filters:
            yield f"{item}__exact" if isinstance(item, str) else item.parameter_name

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Ignore an empty `_to_field`: Django would look for a column with an empty name."""
        return super().get_object(request, object_id, from_field or None)


class BackofficeAdmin(RestrictedLookups):
    """A list and its pages. Rows are never deleted, because bills and logs refer to them."""

    # Django's types allow names of fields, but not functions.
    list_display: Any = ("__str__",)
    fields: ClassVar[Any] = None
    readonly_fields: ClassVar[Any] = ()
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    # Shown in place of an empty list.
    when_empty = "There is nothing here yet."

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        title = {"title": capfirst(self.opts.verbose_name_plural)}
        return super().changelist_view(request, {**title, **(extra_context or {})})

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        context["show_save_and_add_another"] = False
        return super().render_change_form(request, context, *args, **kwargs)

    def form_page(
        self,
        request: HttpRequest,
        form: forms.Form,
        *,
        title: str,
        submit: str,
        original: Model | None = None,
        note: str = "",
    ) -> TemplateResponse:
        """Show a plain form as the admin shows a model's form."""
        fieldsets: Any = [(None, {"fields": list(form.fields), "description": note})]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "submit": submit,
            "original": original,
            "form": form,
            # AdminForm accepts a plain form, though its type does not say so.
            "adminform": helpers.AdminForm(cast("Any", form), fieldsets, {}, (), self),
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "backoffice/form_page.html", context)

    def confirmation_page(
        self,
        request: HttpRequest,
        rows: Mapping[Any, str],
        *,
        action: str,
        verb: str,
        consequence: str,
        otherwise: str,
    ) -> TemplateResponse:
        """Ask before an action. `rows` are the texts of the affected rows by primary key;
        `otherwise` is shown if there are none."""
        name = self.opts.verbose_name if len(rows) == 1 else self.opts.verbose_name_plural
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"{verb} {self.opts.verbose_name_plural}",
            "rows": rows,
            "action": action,
            "submit": f"{verb} {len(rows)} {name}",
            "consequence": consequence,
            "otherwise": otherwise,
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "backoffice/confirm.html", context)

    def require(self, request: HttpRequest, permission: str) -> None:
        """Raise PermissionDenied unless the operator has a permission."""
        if not request.user.has_perm(permission):
            raise PermissionDenied

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row with a primary key from the URL; raise Http404."""
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404(f"There is no such {self.opts.verbose_name}.")
        return row


def prefilled(form: type[forms.Form], query: QueryDict) -> dict[str, Any]:
    """Return the values from a link's query that the fields of a form accept."""
    fields = form.base_fields
    return {name: value for name, value in query.items() if _is_valid(fields.get(name), value)}


def _is_valid(field: forms.Field | None, value: Any) -> bool:
    try:
        return field is not None and field.clean(value) is not None
    except (ValidationError, OverflowError, DataError):
        return False


class ReadOnlyAdmin(BackofficeAdmin):
    """Rows that only the gateway writes."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class StateFilter(admin.SimpleListFilter):
    """Filter by the annotation `state`."""

    title = "state"
    parameter_name = "state"
    states: ClassVar[Sequence[str]] = ()

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state.capitalize()) for state in self.states]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(state=self.value()) if self.value() else queryset
