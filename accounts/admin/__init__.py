"""The back-office's pages for customers. `billing.admin` adds money to the page of an account."""

from django.contrib import admin

from accounts.admin.accounts import AccountAdmin
from accounts.admin.keys import ApiKeyAdmin
from accounts.admin.users import OperatorAdmin, RoleAdmin
from accounts.forms import LoginForm

__all__ = ["AccountAdmin", "ApiKeyAdmin", "OperatorAdmin", "RoleAdmin"]

admin.site.site_header = "Ollama Gateway"
admin.site.site_title = "Ollama Gateway"
admin.site.index_title = "Back office"
# The gateway's own root speaks to programs; there is no site to view.
admin.site.site_url = None
admin.site.login_form = LoginForm
