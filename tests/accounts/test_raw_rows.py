"""Rows read by raw SQL equal the rows that the ORM reads."""

from datetime import timedelta

import pytest
from knox.crypto import hash_token

from accounts import authentication, keys
from accounts.models import Account, ApiKey
from accounts.raw_rows import Columns
from tests.harness.callers import Caller

pytestmark = pytest.mark.django_db


def test_a_key_read_by_raw_sql_equals_the_one_of_the_orm(alice: Caller) -> None:
    Account.objects.filter(pk=alice.account.pk).update(isolate_prompts=False)
    _key, secret = keys.issue(
        alice.account, name="Expires", allowed_models=["llama3"], expires_in=timedelta(days=1)
    )

    read = authentication.find(hash_token(secret))

    assert read is not None
    row = ApiKey.objects.select_related("account").get(pk=read.pk)
    for model, one, other in ((ApiKey, read, row), (Account, read.account, row.account)):
        for field in model._meta.concrete_fields:
            assert getattr(one, field.attname) == getattr(other, field.attname), field
    assert read.user == row.user


def test_a_column_that_a_model_does_not_have_is_an_error() -> None:
    with pytest.raises(ValueError, match="ApiKey does not have all of: id nonsuch"):
        Columns(ApiKey, "key", "id nonsuch")
