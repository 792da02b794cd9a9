from django.apps import AppConfig


class BillingConfig(AppConfig):
    name = "billing"

    def ready(self) -> None:
        from accounts import keys
        from billing import checks, prices

        checks.register()
        keys.not_for_sale = prices.not_for_sale
