"""Measurements of a running gateway. They borrow the tests' fake model server and clients."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()
