"""Every setting, error code and check is documented, and nothing that is not there."""

import re
from pathlib import Path

from gateway import errors, metering

ROOT = Path(__file__).resolve().parents[2]


def text(*places: str) -> str:
    return "\n".join((ROOT / place).read_text() for place in places)


def test_every_setting_is_on_the_settings_page() -> None:
    read = set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', text("config/settings.py")))
    served = text("config/gunicorn.py", "config/worker.py")
    read |= set(re.findall(r'environ\.get\(["\x27]([A-Z_]+)', served))
    documented = set(re.findall(r"^\| `([A-Z_]+)`", text("docs/settings.md"), re.MULTILINE))

    assert read == documented


def test_every_error_code_is_on_the_errors_page() -> None:
    codes = {
        name.code
        for module in (errors, metering)
        for name in vars(module).values()
        if isinstance(name, type) and issubclass(name, errors.GatewayError)
    }
    documented = set(re.findall(r"^\| `([a-z_]+)`", text("docs/errors.md"), re.MULTILINE))

    assert codes - {"client_left"} == documented


def test_every_check_is_on_the_settings_page() -> None:
    checks = text("accounts/checks.py", "gateway/checks.py", "billing/checks.py")
    numbers = set(re.findall(r'id="([a-z]+\.E\d+)"', checks))

    assert numbers and all(number in text("docs/settings.md") for number in numbers)
