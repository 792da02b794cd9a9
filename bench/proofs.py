"""The promises that are facts, not times: run the tests that prove them, and print their results.

Each runs in a process of its own, on SQLite; `make test-faults` runs them all, on both databases.
"""

import re
import subprocess
import sys
from dataclasses import dataclass

from bench.figures import Figure

# Longer than any test here, unless it hangs.
SECONDS = 900.0
FAULTS = "tests/faults"


@dataclass(frozen=True)
class Proof:
    """A promise, the tests that would fail if it broke, and which of their figures to show."""

    number: str
    promise: str
    target: str
    tests: tuple[str, ...]
    figure: str = ""

    def run(self) -> Figure:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-s",
            "-p",
            "no:cacheprovider",
            *self.tests,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        found = self._found(done.stdout, done.stderr)
        return Figure(self.number, self.promise, self.target, found, done.returncode == 0)

    def _found(self, report: str, figures: str) -> str:
        if self.figure and (shown := re.findall(rf"FIGURE .*?({self.figure})", figures)):
            return "; ".join(shown)
        counts = re.findall(r"\d+ (?:failed|passed)", report.strip().rpartition("\n")[2])
        return "tests: " + (", ".join(counts) or "none ran")


PROOFS = [
    Proof(
        "P7",
        "a slow client costs one slot, for a time",
        "2 x CLIENT_SECONDS",
        (f"{FAULTS}/test_slow_clients.py",),
    ),
    Proof(
        "P11",
        "a cut answer never looks complete",
        "0",
        (f"{FAULTS}/test_upstream_cuts.py",),
        r"\d+ cuts, \d+ looked",
    ),
    Proof(
        "P12",
        "what Ollama says is what arrives",
        "0 differences",
        (f"{FAULTS}/test_upstream_faults.py", "-k", "sliced"),
    ),
    Proof(
        "P17",
        "no way to another's data, or to control",
        "0",
        (
            "tests/accounts",
            "tests/backoffice",
            "tests/gateway/test_model_management.py",
            "tests/gateway/test_malformed.py",
        ),
    ),
    Proof("P18", "no secret, no prompt in a log", "0", (f"{FAULTS}/test_secrets.py",)),
    Proof(
        "P19",
        "no input makes a 5xx",
        "0 of 50,000",
        (f"{FAULTS}/test_fuzz.py", f"{FAULTS}/test_fuzz_bytes.py"),
        r"P19 [^;]*",
    ),
    Proof(
        "P21",
        "the books show every change made to them",
        "all",
        ("tests/billing/test_reconciliation.py",),
    ),
    Proof("P22", "a backup restores and reconciles", "yes", (f"{FAULTS}/test_backup.py",)),
    Proof("P24", "prompts stay in your network", "0", (f"{FAULTS}/test_egress.py",)),
]

NOT_PROMISED = {
    "P5": "no request beyond a limit of concurrency",
    "P10": "one customer cannot starve another",
    "P16": "rate limits hold over processes",
}
