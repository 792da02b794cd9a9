"""PostgreSQL's functions: a hold, or a settlement, in one round trip and one transaction.

They execute the statements of `steps.py` in the order in which `ledger.py` executes them on SQLite.
Each statement in a function has a snapshot of its own, as between BEGIN and COMMIT at READ
COMMITTED. `migrate` installs the functions at its end, as it does the append-only triggers.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from billing import budgets, clock, configuration, months, steps
from billing.models import Hold, TokenUsage
from billing.reservations import Reservation

# The hold's commit does not wait for the disk. A power cut may lose it, but then the response is
# lost too, and a settlement that was written can be settled without its hold.
_HOLD = """
#variable_conflict use_column
DECLARE
    hold {hold_table} := jsonb_populate_record(NULL::{hold_table}, asked);
    place record;
    wanted bigint;
    database uuid;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    IF claim IS NOT NULL THEN
        {claim};
        IF NOT FOUND THEN
            RETURN '{{"claimed": true}}';
        END IF;
    END IF;
    hold.opened_at := moment;
    hold.lease_until := moment + lease;
    hold.held_in := '[]';
    FOR place IN {places} LOOP
        wanted := CASE place.unit WHEN 'money' THEN hold.amount ELSE hold.tokens END;
        IF place.month = '' THEN
            {take};
        ELSE
            {take_in_month};
        END IF;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'refused' USING ERRCODE = 'LG001';
        END IF;
        hold.held_in := hold.held_in || jsonb_build_array(jsonb_build_array(place.id, place.month));
    END LOOP;
    {insert_hold} INTO database;
    RETURN jsonb_build_object(
        'opened_at', hold.opened_at, 'held_in', hold.held_in, 'database', database);
EXCEPTION WHEN SQLSTATE 'LG001' THEN
    -- All that was written since BEGIN is undone; a variable keeps its value.
    RETURN jsonb_build_object('refused_by', place.id, 'amount', wanted);
END
"""

# `months_held`: a monthly budget holds in each month in which the request may be settled.
_PLACES = """
SELECT bound.*, months.month FROM ({budgets}) AS bound
CROSS JOIN LATERAL (
    SELECT '' AS month WHERE bound."window" <> 'month'
    UNION
    SELECT to_char(may_end AT TIME ZONE 'UTC', 'YYYY-MM')
    FROM (VALUES (moment), (moment + longest)) AS ends (may_end) WHERE bound."window" = 'month'
) AS months
ORDER BY bound.id, months.month
"""

_SETTLE = """
#variable_conflict use_column
DECLARE
    usage {usage_table} := jsonb_populate_record(NULL::{usage_table}, columns);
    this_month text := to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM');
    budget record;
    in_money boolean;
    gave text[];
    given bigint;
    charged bigint;
    held_month text;
BEGIN
    {move};
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    usage.started_at := LEAST(usage.started_at, moment);
    usage.settled_at := moment;
    usage.day := (moment AT TIME ZONE 'UTC')::date;
    {insert_usage};
    FOR budget IN {budgets} LOOP
        in_money := budget.unit = 'money';
        gave := ARRAY(SELECT place->>1 FROM jsonb_array_elements(reservation->'held_in') AS place
            WHERE (place->>0)::bigint = budget.id);
        given := (reservation->>CASE WHEN in_money THEN 'amount' ELSE 'tokens' END)::bigint;
        charged := CASE WHEN NOT usage.billed THEN 0 WHEN in_money THEN usage.cost
            ELSE usage.prompt_tokens + usage.completion_tokens END;
        IF budget."window" <> 'month' THEN
            {charge};
            CONTINUE;
        END IF;
        FOREACH held_month IN ARRAY gave LOOP
            {charge_month};
        END LOOP;
        IF charged <> 0 AND this_month <> ALL (gave) THEN
            {spend_in_month};
        END IF;
    END LOOP;
    {roll_up};
    RETURN moment;
END
"""

_CREATE = """
CREATE OR REPLACE FUNCTION {name}({parameters}) RETURNS {returns} LANGUAGE plpgsql AS $${body}$$
"""

# The parameters and the result of each.
SIGNATURES = {
    "ledger_hold": (
        "asked jsonb, claim jsonb, moment timestamptz, lease interval, longest interval",
        "jsonb",
    ),
    "ledger_settle": (
        "columns jsonb, reservation jsonb, final_state text, boot_ms bigint, moment timestamptz",
        "timestamptz",
    ),
}


def bodies() -> dict[str, str]:
    """Return the source of each function, with the statements of `steps.py` in it."""
    return {"ledger_hold": _hold(), "ledger_settle": _settle()}


def _hold() -> str:
    of_hold = _fields("hold", Hold)
    claimed = {name: f"claim->>'{name}'" for name in ("digest", "fingerprint")}
    expires = {"now": "moment", "expires_at": "moment + (claim->>'lifetime')::interval"}
    place = {"budget_id": "place.id", "month": "place.month", "amount": "wanted"}
    return _HOLD.format(
        hold_table=Hold._meta.db_table,
        claim=steps.CLAIM % {**of_hold, **claimed, **expires},
        places=_PLACES.format(budgets=steps.BUDGETS % of_hold),
        take=steps.TAKE % place,
        take_in_month=steps.TAKE_IN_MONTH % {**place, "limit": 'place."limit"'},
        insert_hold=steps.INSERT_HOLD % of_hold,
    )


def _settle() -> str:
    of_usage = _fields("usage", TokenUsage)
    gate = {"before": "'open'", "after": "final_state", "lease_boot_ms": "boot_ms", "now": "moment"}
    budget = {"budget_id": "budget.id", "used": "charged"}
    counted = {
        "requests": "1",
        "unbilled": "(NOT usage.billed)::int",
        "prompt_tokens": "CASE WHEN usage.billed THEN usage.prompt_tokens ELSE 0 END",
        "completion_tokens": "CASE WHEN usage.billed THEN usage.completion_tokens ELSE 0 END",
    }
    of_month = {"month": "held_month", "held": "given"}
    used = "CASE held_month WHEN this_month THEN charged ELSE 0 END"
    return _SETTLE.format(
        usage_table=TokenUsage._meta.db_table,
        move=steps.MOVE % {**of_usage, **gate},
        insert_usage=steps.INSERT_USAGE % of_usage,
        budgets=steps.BUDGETS % of_usage,
        charge=steps.CHARGE % {**budget, "held": "CASE gave WHEN '{}' THEN 0 ELSE given END"},
        charge_month=steps.CHARGE_MONTH % {**budget, **of_month, "used": used},
        spend_in_month=steps.SPEND_IN_MONTH % {**budget, "month": "this_month"},
        roll_up=steps.ROLL_UP % {**of_usage, **counted},
    )


def _fields(variable: str, model: Any) -> dict[str, str]:
    """Return a placeholder's value for each column of a model: the field of a variable."""
    return {field.attname: f'{variable}."{field.column}"' for field in model._meta.concrete_fields}


# --- Calls ------------------------------------------------------------------------------------


def hold(asked: str, claim: str | None, lease: timedelta) -> dict[str, Any] | None:
    """Write a hold with the columns asked for, in JSON, and claim an idempotency key.

    Returns what a reservation has of it besides; None if another request has the key. Raises
    Refused. In both cases nothing is written.
    """
    now, at = clock.now_sql()
    call = f"SELECT ledger_hold(%s, %s, {now}, %s, %s)"
    [(returned,)] = steps.rows(call, asked, claim, *at, lease, months.may_last())
    held = json.loads(returned)
    if "refused_by" in held:
        raise budgets.refusal(held["refused_by"], held["amount"])
    if "claimed" in held:
        return None
    return {
        "held_in": tuple((budget_id, month) for budget_id, month in held["held_in"]),
        "opened_at": datetime.fromisoformat(held["opened_at"]),
        "database": UUID(held["database"]),
    }


def settle(
    columns: Mapping[str, Any], reservation: Reservation, state: str, lease_boot_ms: int | None
) -> datetime | None:
    """End an open hold and write its usage row, charge it and count it.

    Returns when; None if there is no such hold, and nothing is written.
    """
    gave = {name: getattr(reservation, name) for name in ("amount", "tokens", "held_in")}
    now, at = clock.now_sql()
    call = f"SELECT ledger_settle(%s, %s, %s, %s, {now})"
    written = json.dumps(columns, default=str)
    [(settled_at,)] = steps.rows(call, written, json.dumps(gave), state, lease_boot_ms, *at)
    return settled_at  # type: ignore[no-any-return]


# --- Installation -----------------------------------------------------------------------------


def install_after_migrate(*, using: str, **_kwargs: Any) -> None:
    """Install the functions that differ from this version's. SQLite has none."""
    if configuration.has_table(using) and missing(connections[using]):
        install(connections[using], bodies())


def install(connection: BaseDatabaseWrapper, sources: Mapping[str, str]) -> None:
    with connection.cursor() as cursor:
        for name, body in sources.items():
            parameters, returns = SIGNATURES[name]
            cursor.execute(
                _CREATE.format(name=name, parameters=parameters, returns=returns, body=body)
            )


_FOUND = """
SELECT proname, prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
"""


def missing(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the functions that are not there, or whose source is not this version's."""
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute(_FOUND)
        found = dict(cursor.fetchall())
    return [name for name, body in bodies().items() if found.get(name) != body]
