"""The page in use: the token is given, studies come and go, the coordinator does; on a telephone, with hostile names."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.devtools import Browser
from support.fake_workshop import a_progress
from support.http_service import TOKEN, HttpService, http_service
from support.waiting import wait_until

from trialfleet_coordinator.serving import ServiceState, StudyStatus, Submission

HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"
ASKS = "document.getElementById('ask')?.classList.contains('needed') === true"
TROUBLE = "document.getElementById('trouble').textContent"
ROWS = "document.querySelectorAll('#studies tr').length"


@pytest.fixture
def service() -> Iterator[HttpService]:
    with http_service() as service:
        yield service


@pytest.fixture
def browser(service: HttpService, tmp_path: Path) -> Iterator[Browser]:
    """On the page, which has asked for the token."""
    with Browser(tmp_path) as browser:
        browser.open(service.url)
        browser.wait(ASKS)
        yield browser


def give(browser: Browser, token: str, times: int = 1) -> None:
    submit = f"document.getElementById('token').value = '{token}'; document.getElementById('ask').requestSubmit();"
    browser.run(submit * times)


def test_the_token_is_given_once_and_stays_in_the_tab(service: HttpService, browser: Browser) -> None:
    service.daemon.submit(Submission(tables={}, base="/", name="a"))
    for wrong in ("wrong-wrong-wrong-wrong", "tökèn-that-no-header-can-hold", "€"):
        give(browser, wrong)
        browser.wait(f"{TROUBLE} === 'The coordinator wants another token.' && {ASKS}")
        browser.run("document.getElementById('trouble').textContent = ''")
    give(browser, TOKEN)
    browser.wait(f"{ROWS} === 1 && !({ASKS})")
    browser.open(service.url)
    browser.wait(f"{ROWS} === 1 && !({ASKS})")
    assert browser.run("localStorage.length + document.cookie.length") == 0
    assert TOKEN not in browser.run("location.href + document.documentElement.outerHTML")


def test_it_shows_what_happens_and_asks_no_oftener_than_it_says(
    service: HttpService, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    studies = service.daemon.studies

    def count() -> list[StudyStatus]:
        asked.append(None)
        return studies()

    monkeypatch.setattr(service.daemon, "studies", count)
    give(browser, TOKEN, times=5)
    browser.wait(f"{ROWS} === 0 && !document.getElementById('no-studies').hidden")
    started = float(browser.run("performance.now()"))  # first: what is asked in between is counted in its time
    began = len(asked)
    service.daemon.submit(Submission(tables={}, base="/", name="a"))
    browser.wait(f"{ROWS} === 1")
    service.daemon.cancel("a")
    browser.wait(f"document.querySelector('#studies .{ServiceState.CANCELLED}') !== null")
    wait_until(lambda: len(asked) >= began + 3, "it has asked three more times")
    seconds = (float(browser.run("performance.now()")) - started) / 1000
    assert len(asked) - began <= seconds / 2 + 1


def test_it_tells_decided_and_undecided_trials(
    service: HttpService, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = msgspec.structs.replace(a_progress("a"), trials=16, trials_budget=100, complete=2, pruned=10)
    status = service.daemon.submit(Submission(tables={}, base="/", name="a"))
    running = msgspec.structs.replace(status, state=ServiceState.RUNNING, progress=progress)
    monkeypatch.setattr(service.daemon, "studies", lambda: [running])
    give(browser, TOKEN)
    browser.wait("document.querySelector('#studies')?.textContent.includes('12 of 100, 4 undecided')")


def test_on_a_telephone_nothing_is_beyond_the_edge_and_a_name_stays_text(
    service: HttpService, browser: Browser
) -> None:
    for number, name in enumerate((HOSTILE, "x" * 190, "</script><script>document.title=1</script>")):
        service.daemon.submit(Submission(tables={}, base="/", name=f"{name}{number}"))
    browser.show_on(390, 844)
    give(browser, TOKEN)
    browser.wait(f"{ROWS} === 3")
    edge = "Math.max(...[...document.querySelectorAll('td')].map(td => td.getBoundingClientRect().right))"
    assert browser.run(edge) <= 390
    assert browser.run(f"[document.title, document.images.length, {ROWS}]") == ["trialfleet", 0, 3]


def test_markup_that_came_into_the_page_could_do_nothing(browser: Browser) -> None:
    """The second line of defence: what the page may do is bound to the script that it was served with."""
    browser.run(
        "window.refused = [];"
        "document.addEventListener('securitypolicyviolation', event => refused.push(event.effectiveDirective));"
        f"document.body.insertAdjacentHTML('beforeend', {HOSTILE!r})"
    )
    browser.wait("refused.length > 0")
    browser.run("fetch('http://127.0.0.2:9/').catch(() => null)")
    browser.wait("refused.includes('connect-src') && refused.includes('img-src')")
    assert browser.run("document.title") == "trialfleet"


def test_it_says_when_the_coordinator_is_away(tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        with http_service() as service:
            service.daemon.submit(Submission(tables={}, base="/", name="a"))
            browser.open(service.url)
            browser.wait(ASKS)
            give(browser, TOKEN)
            browser.wait(f"{ROWS} === 1")
        browser.wait(f"{TROUBLE}.startsWith('No answer')")
        assert browser.run(ROWS) == 1
