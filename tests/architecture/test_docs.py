"""Every setting, error code and check is documented, and nothing else."""

import re
from pathlib import Path

from gateway import errors, metering

ROOT = Path(__file__).resolve().parents[2]


def text(*paths: str) -> str:
    return "\n".join((ROOT / path).read_text() for path in paths)


def test_every_setting_is_on_the_settings_page() -> None:
    code = text("config/settings.py", "config/environment.py", "config/gunicorn.py")
    read = set(re.findall(r'env(?:iron)?\.\w+\(\s*"([A-Z_]+)"', code + text("config/worker.py")))
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


def test_every_check_is_documented() -> None:
    checks = text("accounts/checks.py", "gateway/checks.py", "billing/checks.py")
    numbers = set(re.findall(r'id="([a-z]+\.E\d+)"', checks)) | {"config.E001"}

    pages = text("docs/settings.md", "docs/operations.md")
    assert numbers and all(number in pages for number in numbers)


def test_every_documented_log_line_is_in_the_code() -> None:
    section = text("docs/operations.md").partition("Alert on these log lines")[2].partition("##")[0]
    lines = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    code = "".join(path.read_text() for path in (ROOT / "billing").glob("*.py"))

    assert lines and [line for line in lines if line not in re.sub(r'"\s+"', "", code)] == []


def test_every_linked_file_exists() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_file_named_by_the_architecture_page_exists() -> None:
    apps = "accounts|backoffice|billing|config|gateway|embedded|templates|tests"
    paths = re.findall(rf"\b(?:{apps})/[\w/]*(?:\.py)?", text("docs/architecture.md"))

    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_systemd_waits_until_running_responses_have_drained() -> None:
    unit = text("deploy/gateway.service")
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)

    assert int(stop) > 25 + 5 and "-c config/gunicorn.py config.wsgi" in unit
