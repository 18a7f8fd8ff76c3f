"""`trialfleet health`."""

import http.client
import os
import urllib.error
import urllib.request

import click

from trialfleet.coordinator_files import SERVED_AT, CoordinatorFiles
from trialfleet.environment import default_home
from trialfleet.tls import client_tls
from trialfleet_shared.visible import visible

#: Seconds that an answer may take.
_PATIENCE = 3.0
#: Characters of an answer that are shown at most.
_SHOWN = 200


def health_command(url: str | None) -> int:
    """Ask the coordinator at `url` whether it can do its work, and say so in one line; the exit status, 0 or 1.

    Without a URL it is the one of the home, where one runs.
    """
    url = url or CoordinatorFiles(default_home(os.environ)).url() or SERVED_AT
    address = f"{url.rstrip('/')}/readyz"
    if not address.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} is none; allowed is http://host:port, or https://", param_hint="--url")
    if "@" in address.split("/")[2]:  # not shown: there may be a password
        raise click.BadParameter("it has a user's name; allowed is http://host:port, or https://", param_hint="--url")
    try:
        # No proxy: whether the coordinator of this machine is there is no question for one.
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=client_tls(os.environ))]
        opener = urllib.request.build_opener(*handlers)
        with opener.open(address, timeout=_PATIENCE) as answer:
            ready, said = answer.status == http.client.OK, f"answered {answer.status}"
    except urllib.error.HTTPError as error:
        with error:
            words = " ".join(error.read(_SHOWN).decode("utf-8", errors="replace").split())
        ready, said = False, f"answered {error.code}{f': {visible(words)}' if words else ''}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        ready, said = False, str(reason) or type(reason).__name__
    click.echo(f"ready: {address}" if ready else f"not ready: {address}: {said}")
    return 0 if ready else 1
