from django.apps import AppConfig
from django.db.models.signals import post_migrate


class BillingApp(AppConfig):
    name = "billing"

    def ready(self) -> None:
        from billing import append_only, checks, configuration

        checks.register()
        post_migrate.connect(configuration.write_after_migrate, sender=self)
        post_migrate.connect(append_only.protect_after_migrate, sender=self)
