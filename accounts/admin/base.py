"""What the pages of the back-office share: nothing is deleted, and what is written goes through
a form of its own to the one function that may write it."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
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
    assert isinstance(request.user, User)  # The admin lets nobody else in.
    return request.user


class OwnLookups(_ModelAdmin):
    """A list that is filtered as its own links do, and in no other way."""

    # What links on other pages narrow the list by.
    linked_by: tuple[str, ...] = ()

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Allow what our own links ask for.

        Any other would tell of a hidden column, bit by bit; and Django fails on some of them.
        """
        return lookup in self.linked_by or lookup in self._filtered_by()

    def _filtered_by(self) -> Iterator[str]:
        filters: Any = self.list_filter
        for each in filters:
            yield f"{each}__exact" if isinstance(each, str) else each.parameter_name

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        """Take an empty `_to_field` for none: Django looks for a column of that name."""
        return super().get_object(request, object_id, from_field or None)


class BackofficeAdmin(OwnLookups):
    """A list and its pages. Rows are never deleted: bills and logs name them for ever."""

    # Wider than Django's own types, which know names of fields but not functions.
    list_display: Any = ("__str__",)
    fields: ClassVar[Any] = None
    readonly_fields: ClassVar[Any] = ()
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    # What the list says while it is empty.
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
        """Show a form that is not the model's own in the clothes of the admin."""
        fieldsets: Any = [(None, {"fields": list(form.fields), "description": note})]
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "submit": submit,
            "original": original,
            "form": form,
            # Wants no model of its form, whatever its types say.
            "adminform": helpers.AdminForm(cast("Any", form), fieldsets, {}, (), self),
            "media": self.media + form.media,
        }
        return TemplateResponse(request, "admin/form_page.html", context)

    def require(self, request: HttpRequest, permission: str) -> None:
        """Raise PermissionDenied unless the operator has a permission."""
        if not request.user.has_perm(permission):
            raise PermissionDenied

    def find(self, request: HttpRequest, object_id: str) -> Any:
        """Return the row an address names; raise Http404."""
        found = self.get_object(request, unquote(object_id))
        if found is None:
            raise Http404(f"There is no such {self.opts.verbose_name}.")
        return found


def prefilled(form: type[forms.Form], query: QueryDict) -> dict[str, Any]:
    """Return what a link may fill a form with: the values that their fields take."""
    fields = form.base_fields
    return {name: value for name, value in query.items() if _fits(fields.get(name), value)}


def _fits(field: forms.Field | None, value: Any) -> bool:
    try:
        return field is not None and field.clean(value) is not None
    except (ValidationError, OverflowError, DataError):
        return False


class ReadOnlyAdmin(BackofficeAdmin):
    """Rows that only the gateway itself writes."""

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


# --- Columns ------------------------------------------------------------------------------------

Text = Callable[[Any], str]
Column = Any


def column(name: str, label: str, text: Text, order: str | None = None) -> Column:
    """Return a column of a list: its name, its heading, and what it says of a row."""

    @admin.display(description=label, ordering=order)
    def show(row: Any) -> str:
        return text(row)

    show.__name__ = name
    return show


def figure(name: str, label: str, text: Text, order: str | None = None) -> Column:
    """Return a column of numbers; the style sheet aligns those by their name."""
    return column(f"figure_{name}", label, text, order)


def moment(field: str, label: str, *, never: str = "-", sortable: bool = True) -> Column:
    """Return a column of times, to the second: rows of one minute must be told apart."""
    return column(
        field, label, lambda row: at(getattr(row, field), never), field if sortable else None
    )


def at(when: datetime | None, never: str = "-") -> str:
    return never if when is None else f"{when:%Y-%m-%d %H:%M:%S}"
