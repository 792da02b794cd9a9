"""Check the model server, and report each problem with its remedy."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from gateway.diagnosis.model_server import Finding, State, examine


class Command(BaseCommand):
    help = (
        "Check the Ollama at OLLAMA_BASE: its version, models without a price and prices without "
        "a model, templates, context lengths, other clients, and whether accounts share prompts. "
        "Exits with 1 if there is an error. It asks a model for four tokens, for which nobody pays."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON object")
        parser.add_argument(
            "--timeout",
            type=_seconds,
            default=60.0,
            metavar="SECONDS",
            help="how long all of it may take (default: %(default)s)",
        )
        parser.add_argument(
            "--no-measure",
            dest="measure",
            action="store_false",
            help="ask no model anything; nothing is loaded",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        findings = []
        for finding in examine(options["timeout"], measure=options["measure"]):
            findings.append(finding)
            if not options["json"]:
                self._print(finding)
        counts = Counter(finding.state for finding in findings)
        if options["json"]:
            found = {"ollama": settings.OLLAMA_BASE, "findings": list(map(asdict, findings))}
            self.stdout.write(json.dumps(found, indent=2))
        else:
            self.stdout.write(f"{counts[State.ERROR]} errors, {counts[State.WARNING]} warnings.")
        if counts[State.ERROR]:
            sys.exit(1)

    def _print(self, finding: Finding) -> None:
        self.stdout.write(f"{finding.state:<8} {finding.subject}: {finding.message}")
        if finding.remedy:
            self.stdout.write(f"         {finding.remedy}")


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 3600:
        raise ArgumentTypeError(f"{text} is not a number of seconds from 1 to 3600")
    return found
