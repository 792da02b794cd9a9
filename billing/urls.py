from django.urls import path

from billing.views import HistoryView, UsageView

urlpatterns = [
    path("usage", UsageView.as_view()),
    path("usage/history", HistoryView.as_view()),
]
