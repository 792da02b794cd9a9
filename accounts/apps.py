from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "accounts"
    verbose_name = "Customers"

    def ready(self) -> None:
        from django.core.signals import request_finished

        from accounts import checks, last_used

        checks.register()
        request_finished.connect(last_used.flush, dispatch_uid="accounts.last_used")
