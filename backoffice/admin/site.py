"""The admin site's titles and its login form."""

from django.contrib import admin

from backoffice.forms.login import LoginForm


def configure() -> None:
    admin.site.site_header = "Ollama Gateway"
    admin.site.site_title = "Ollama Gateway"
    admin.site.index_title = "Back office"
    # The gateway has no pages for visitors, so the admin links to none.
    admin.site.site_url = None
    admin.site.login_form = LoginForm
