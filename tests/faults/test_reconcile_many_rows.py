"""`reconcile` reads each table once, so its time grows with the rows and not with their square."""

from collections.abc import Iterator

import pytest

from bench.many_rows import fill
from tests.harness.deployment import DATABASES, Deployment, deploy
from tests.servers.gunicorn import manage

pytestmark = pytest.mark.once  # It brings both databases itself, so one run is enough.

ROWS = 200_000
# The limit for a statement: a join that reads a table again for each row takes hours.
LONGEST_STATEMENT = "?options=-c%20statement_timeout%3D60s"


@pytest.fixture(params=DATABASES)
def deployment(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    with deploy(request.param) as made:
        yield made


def test_reconcile_of_many_rows_ends_in_time(deployment: Deployment) -> None:
    fill(deployment, ROWS)
    url = deployment.url + (LONGEST_STATEMENT if deployment.postgres else "")

    proved = manage({**deployment.env, "DATABASE_URL": url}, "reconcile", timeout=600)

    assert proved.returncode == 0, proved.stdout + proved.stderr
    assert f"newest id {ROWS} " in proved.stdout
