"""The menu of the back-office, grouped by purpose instead of by app."""

from typing import Any

from django import template

register = template.Library()

MENU = [
    ("Customers", ["Account", "ApiKey"]),
    ("Money", ["ModelPrice", "Budget", "LimitChange", "Entry"]),
    ("Usage", ["TokenUsage", "UsageDaily", "Hold"]),
    ("Operators", ["User", "Group"]),
]


@register.filter
def by_purpose(app_list: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Regroup the admin's apps. A model that MENU does not name stays with its app."""
    remaining = {model["object_name"]: model for app in app_list for model in app["models"]}
    groups = []
    for title, names in MENU:
        models = [remaining.pop(name) for name in names if name in remaining]
        groups.append({"name": title, "models": models})
    for app in app_list:
        others = [model for model in app["models"] if model["object_name"] in remaining]
        groups.append({"name": app["name"], "models": others})
    return [group for group in groups if group["models"]]
