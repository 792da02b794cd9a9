"""The menu of the back-office: by what an operator is after, not by app."""

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
    """Regroup the admin's apps; what the menu does not know stays with its app."""
    unplaced = {model["object_name"]: model for app in app_list for model in app["models"]}
    groups = []
    for title, names in MENU:
        models = [unplaced.pop(name) for name in names if name in unplaced]
        groups.append({"name": title, "models": models})
    for app in app_list:
        rest = [model for model in app["models"] if model["object_name"] in unplaced]
        groups.append({"name": app["name"], "models": rest})
    return [group for group in groups if group["models"]]
