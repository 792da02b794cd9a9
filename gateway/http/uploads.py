"""Nothing is uploaded here: Django refuses a file before it keeps any of it."""

from typing import Any, NoReturn

from django.core.exceptions import SuspiciousMultipartForm
from django.core.files.uploadhandler import FileUploadHandler


class NoUploads(FileUploadHandler):
    def new_file(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise SuspiciousMultipartForm("Files are not accepted.")

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes | None:
        return None

    def file_complete(self, file_size: int) -> None:
        return None
