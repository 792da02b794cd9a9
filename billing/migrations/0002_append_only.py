"""Prices, usage rows and entries refuse UPDATE and DELETE in the database itself."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from billing import append_only


def protect(apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    append_only.protect(editor)


def unprotect(apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    append_only.unprotect(editor)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [migrations.RunPython(protect, unprotect)]
