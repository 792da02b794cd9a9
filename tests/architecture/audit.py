"""Ask for known vulnerabilities of everything that is pinned: `make audit`.

pip-audit alone ends with the same code for a vulnerability and for a network that is away. Here
what was found and what is broken end with 1, and what could not be asked with 2.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-embedded.txt")
# OSV, because it also lists malicious releases, which the registry's own advisories do not.
COMMAND = "pip_audit --vulnerability-service osv --disable-pip --progress-spinner off --format json"
SECONDS = 120
# Set where the advisories cannot be reached at all, as in a closed network.
MAY_SKIP = "AUDIT_MAY_SKIP"
# A line of what pip-audit says when its source did not answer, or not as it should.
SILENCE = re.compile(
    r"^(requests\.exceptions\.|pip_audit\.\S+(Connection|Service)Error|.*Could not connect)",
    re.MULTILINE,
)


def audit(*options: str, seconds: float = SECONDS) -> int:
    """Print what was found, and return the exit code."""
    files = [part for name in FILES for part in ("--requirement", name)]
    command = [sys.executable, "-m", *COMMAND.split(), *files, *options]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return skipped()
    if done.stdout:
        return report(json.loads(done.stdout)["dependencies"])
    return skipped() if SILENCE.search(done.stderr) else broken(done.stderr)


def report(packages: list[dict[str, Any]]) -> int:
    """Name what is vulnerable; what could not be looked up is no better."""
    bad = [package for package in packages if package.get("vulns", True)]
    for package in bad:
        print(package["name"], package.get("version", ""), why(package))
    print(f"{len(packages)} packages audited, {len(bad)} to look at.")
    return 1 if bad else 0


def why(package: dict[str, Any]) -> str:
    found = [
        f"{one['id']} (fixed in: {', '.join(one['fix_versions']) or 'nothing yet'})"
        for one in package.get("vulns", [])
    ]
    return ", ".join(found) or str(package["skip_reason"])


def skipped() -> int:
    """Say that nothing was audited, and fail unless that is allowed: a pass would be believed."""
    allowed = os.environ.get(MAY_SKIP) == "on"
    print(f"{'Skipped' if allowed else 'Not audited'}: the advisories cannot be reached.")
    if not allowed:
        print(f"{MAY_SKIP}=on lets this pass where there is no way to them.")
    return 0 if allowed else 2


def broken(said: str) -> int:
    print(said, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(audit(*sys.argv[1:]))
