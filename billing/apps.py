from django.apps import AppConfig
from django.db.models.signals import post_migrate


class BillingApp(AppConfig):
    name = "billing"

    def ready(self) -> None:
        from accounts import keys
        from billing import append_only, books, checks, configuration, price_book
        from gateway import metering

        checks.register()
        post_migrate.connect(configuration.write_after_migrate, sender=self)
        post_migrate.connect(append_only.protect_after_migrate, sender=self)
        keys.not_for_sale = price_book.not_for_sale
        metering.books = books.LedgerBooks()
