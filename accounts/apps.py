from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Customers"

    def ready(self) -> None:
        from django.contrib.auth.models import User
        from django.core.signals import request_finished
        from django.db.models.signals import pre_delete

        from accounts import authors, checks, last_used

        checks.register()
        pre_delete.connect(
            authors.refuse_deletion, sender=User, dispatch_uid="accounts.authors_are_kept"
        )
        request_finished.connect(last_used.flush, dispatch_uid="accounts.last_used")
