"""Fill a migrated database with a balanced ledger of many rows, by SQL, and time `reconcile`.

python -m bench.many_rows --rows 1000000 --database postgresql
"""

import argparse
import time

from tests.harness.deployment import DATABASES, Deployment, deploy
from tests.servers.gunicorn import manage

PROMPT, COMPLETION, DAYS = 100, 50, 60
REQUEST = {
    "postgresql": "('01930000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid",
    "sqlite": "'0193000000007000' || '8000' || printf('%012x', n)",
}
MOMENT = {
    "postgresql": f"date_trunc('second', now()) - (n % {DAYS}) * interval '1 day'",
    "sqlite": f"datetime('now', '-' || (n % {DAYS}) || ' days')",
}
NUMBERS = {
    "postgresql": "SELECT generate_series(1, {rows}) AS n",
    "sqlite": "WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {rows})"
    " SELECT n FROM up",
}
COST = f"({PROMPT} * p.prompt_price + {COMPLETION} * p.completion_price)"
# Ended holds, their usage rows, the roll-up, and the wallet of the one account there is.
FILL = [
    """INSERT INTO billing_hold (request_id, account_id, key_id, price_id, model, operation, amount,
        tokens, prompt_estimate, held_in, state, progress, worker, opened_at, lease_until,
        lease_boot_ms, closed_at)
    SELECT {request}, k.account_id, k.id, p.id, p.model, 'generate', {cost}, {tokens}, {prompt},
        '[]', 'settled', 0, 'many', {moment}, {moment}, 0, {moment}
    FROM ({numbers}) numbers, (SELECT * FROM model_prices ORDER BY id LIMIT 1) p,
        (SELECT * FROM accounts_apikey ORDER BY id LIMIT 1) k""",
    """INSERT INTO token_usages (request_id, account_id, key_id, price_id, model, operation,
        prompt_tokens, completion_tokens, prompt_price, completion_price, billed,
        cost, outcome, count_source, started_at, settled_at, day)
    SELECT h.request_id, h.account_id, h.key_id, h.price_id, h.model, h.operation, {prompt},
        {completion}, p.prompt_price, p.completion_price, TRUE, {cost}, 'complete', 'upstream',
        h.opened_at, h.closed_at, date(h.closed_at)
    FROM billing_hold h JOIN model_prices p ON p.id = h.price_id""",
    """INSERT INTO billing_usagedaily (account_id, day, key_id, model, price_id, requests, unbilled,
        prompt_tokens, completion_tokens, cost)
    SELECT account_id, day, key_id, model, price_id, count(*), 0, sum(prompt_tokens),
        sum(completion_tokens), sum(cost) FROM token_usages GROUP BY 1, 2, 3, 4, 5""",
    """UPDATE billing_budget SET spent = (SELECT sum(cost) FROM token_usages)""",
]


def fill(deployment: Deployment, rows: int) -> None:
    vendor = "postgresql" if deployment.postgres else "sqlite"
    for statement in FILL:
        deployment.query(
            statement.format(
                request=REQUEST[vendor],
                moment=MOMENT[vendor],
                numbers=NUMBERS[vendor].format(rows=rows),
                cost=COST,
                prompt=PROMPT,
                completion=COMPLETION,
                tokens=PROMPT + COMPLETION,
            )
        )
    deployment.query("ANALYZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database", choices=DATABASES, default="postgresql")
    given = parser.parse_args()
    with deploy(given.database) as deployment:
        began = time.monotonic()
        fill(deployment, given.rows)
        print(f"{given.rows:,} rows made in {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        proved = manage(deployment.env, "reconcile", timeout=1200)
        print(proved.stdout + proved.stderr)
        print(f"reconcile: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
