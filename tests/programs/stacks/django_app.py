"""A Django project in one file, for gunicorn. See common.py for its variables."""
import time

import common
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import re_path

common.start()
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests only")


def answer(request):
    time.sleep(common.before(request.path))
    return HttpResponse("Hello from Django", headers=common.headers())


urlpatterns = [re_path("", answer)]
application = get_wsgi_application()
