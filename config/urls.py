"""All routes of the gateway. Each app has its own; this module includes them."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("admin", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    path("", include("billing.urls")),
    path("", include("gateway.urls")),
]

handler400 = "gateway.http.error_handlers.bad_request"
handler403 = "gateway.http.error_handlers.permission_denied"
handler404 = "gateway.http.error_handlers.not_found"
handler500 = "gateway.http.error_handlers.server_error"
