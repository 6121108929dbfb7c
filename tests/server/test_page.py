"""The web page, in Chromium."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from daemon import free_port, serving
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support import PATIENCE, wait_until

HOSTILE = "<img src=x onerror=document.title='taken'>"
NAME = HOSTILE[:15]
"""The part of the name that the kernel keeps: a process name (comm) has at most 15 characters."""
CORE = ("--engine", "core", "--netns", "self")

if not os.environ.get("CI"):
    pytestmark = pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs Chromium and chromedriver: run scripts/provision.sh page",
    )


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,800",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver"))
    yield Browser(driver)
    driver.quit()


class Browser:
    """A browser window that shows the page, with methods that read the page."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, port, path="/"):
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(f"http://127.0.0.1:{port}{path}")
        self.wait_for("live")

    def wait_for(self, state, patience=PATIENCE):
        wait_until(
            lambda: self.find("#state").get_attribute("data-state") == state, f"the state {state}", patience
        )

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def rows(self):
        """Return the table: for each row, the list of its cell texts."""
        return self.run(
            "return [...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.innerText))"
        )

    def ports(self):
        return [int(row[0]) for row in self.rows()]

    def changes(self):
        return self.run(
            "return [...document.querySelectorAll('#changes li')]"
            ".filter(item => item.checkVisibility()).map(item => item.innerText)"
        )

    def press(self, *keys):
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def console_errors(self):
        """Return script errors and violations of the Content-Security-Policy, but not refused connections."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and "ERR_CONNECTION_REFUSED" not in entry["message"]
        ]


@pytest.fixture
def page(browser, daemon):
    browser.open(daemon.port)
    yield browser
    assert browser.console_errors() == []


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def listening_process(name):
    """Start a listening process whose name and last argument are `name`, and yield its port."""
    script = (
        "import socket, sys; open('/proc/self/comm', 'w').write(sys.argv[1]);"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.communicate()


def test_the_table_shows_a_port_while_it_is_open(page):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: port in page.ports(), "the port")
        row = next(row for row in page.rows() if row[0] == str(port))
        assert row[1:5] == ["tcp", "127.0.0.1", "loopback", row[4]]
        assert f"({os.getpid()})" in row[4]
        assert page.run("return document.querySelectorAll('tr.fresh').length") >= 1
    wait_until(lambda: port not in page.ports(), "the port to disappear")
    wait_until(lambda: len([change for change in page.changes() if f":{port} " in change]) == 2, "both changes")


def test_ports_opened_before_the_page_are_in_the_table(page, daemon):
    wait_until(lambda: daemon.port in page.ports(), "the daemon's own port")


def test_html_in_a_process_name_is_shown_as_text(browser, daemon):
    with listening_process(HOSTILE) as port:
        wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
        browser.open(daemon.port)
        wait_until(lambda: port in browser.ports(), "the port")
        row = next(row for row in browser.rows() if row[0] == str(port))
        assert NAME in row[4]
        browser.find("#search").send_keys(str(port), Keys.ARROW_DOWN, Keys.ENTER)
        wait_until(lambda: HOSTILE in browser.find("#details").text, "the details")
        browser.press(Keys.ESCAPE)
    wait_until(lambda: any("close" in change and NAME in change for change in browser.changes()), "the close")
    assert browser.run("return document.images.length") == 0
    assert browser.driver.title == "portwatch"
    assert browser.console_errors() == []


def test_a_search_filters_the_table_and_is_kept_in_the_url(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    page.press("/")
    page.press(str(listener))
    wait_until(lambda: page.ports() == [listener], "only the port searched for")
    link = page.run("return location.hash")
    page.press(Keys.ESCAPE)
    wait_until(lambda: len(page.ports()) > 1, "all ports")
    page.run("location.hash = arguments[0]", link)
    wait_until(lambda: page.ports() == [listener], "only the port searched for, again")
    page.run("location.hash = '#q=nosuchthing'")
    wait_until(lambda: "matches" in page.find("#empty").text, "the note that no port matches")


def test_the_filter_buttons_filter_the_table_by_exposure_and_protocol(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    chips = {chip.text.rsplit(None, 1)[0]: chip for chip in page.driver.find_elements(By.CSS_SELECTOR, ".chip")}
    chips["udp"].click()
    wait_until(lambda: listener not in page.ports(), "the port to be filtered out")
    chips["udp"].click()
    chips["loopback"].click()
    wait_until(lambda: listener in page.ports(), "the port to be back")
    assert {row[3] for row in page.rows()} == {"loopback"}


def test_a_click_on_a_column_head_reverses_the_order_of_the_table(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    head = page.find("th.of-port")
    assert head.get_attribute("aria-sort") == "ascending"
    assert page.ports() == sorted(page.ports())
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert page.ports() == sorted(page.ports(), reverse=True)


def test_the_details_of_a_row_can_be_opened_and_closed_with_the_keyboard(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    page.press("/")
    page.press(str(listener))
    wait_until(lambda: page.ports() == [listener], "only the port searched for")
    page.press(Keys.ARROW_DOWN)
    page.press(Keys.ENTER)
    details = page.find("#details")
    wait_until(lambda: "held by" in details.text, "the details")
    assert f"127.0.0.1:{listener}" in details.text
    assert " > " in details.text
    assert "pytest" in details.text
    page.press(Keys.ESCAPE)
    assert details.get_attribute("open") is None


def test_a_click_on_a_row_opens_its_details(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    page.find(f"#rows tr:nth-child({page.ports().index(listener) + 1}) td.of-process").click()
    wait_until(lambda: "held by" in page.find("#details").text, "the details")
    assert f"127.0.0.1:{listener}" in page.find("#details h2").text
    page.find("#details .shut").click()
    assert page.find("#details").get_attribute("open") is None


def test_the_newest_change_is_at_the_top_of_the_list(page):
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            wait_until(lambda: any(f":{port} " in change for change in page.changes()), "the open")  # noqa: B023
            assert f":{port} " in page.changes()[0]
    assert page.run("return document.querySelectorAll('#timeline rect').length") > 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only the core engine sees failed binds, and it needs root")
def test_a_failed_bind_is_shown_with_the_holder_of_the_port(browser, listener):
    with serving(engine=CORE) as daemon:
        browser.open(daemon.port)
        with socket.socket() as refused, pytest.raises(OSError, match="in use"):
            refused.bind(("127.0.0.1", listener))
        wait_until(lambda: any("bind failed" in change for change in browser.changes()), "the failure")
        (failure,) = [change for change in browser.changes() if "bind failed" in change]
        assert "EADDRINUSE" in failure
        assert f"({os.getpid()}) is listening" in failure
        with socket.create_server(("127.0.0.1", 0)) as server:
            opened = f":{server.getsockname()[1]} "
            wait_until(lambda: any(opened in change for change in browser.changes()), "the open")
        browser.find("#failures").click()
        assert browser.changes() == [failure]


def test_a_search_also_filters_the_list_of_changes(page):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: any(f":{port} " in change for change in page.changes()), "the open")
    page.press("/", str(port))
    wait_until(lambda: page.ports() == [], "the close")
    wait_until(lambda: len(page.changes()) == 2, "both changes")
    assert all(f":{port} " in change for change in page.changes())
    page.press("x")
    wait_until(lambda: "matches" in page.find("#quiet").text, "the note that no change matches")


def test_a_lost_connection_is_shown_until_the_daemon_is_back(browser):
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as closing, socket.create_server(("127.0.0.1", 0)) as staying:
        closes, stays = closing.getsockname()[1], staying.getsockname()[1]
        with serving(port=port):
            browser.open(port)
            wait_until(lambda: {closes, stays} <= set(browser.ports()), "both ports")
        browser.wait_for("lost")
        assert "connection lost" in browser.find("#state").text
        closing.close()
        with socket.create_server(("127.0.0.1", 0)) as opening, serving(port=port):
            opened = opening.getsockname()[1]
            browser.wait_for("live")
            wait_until(lambda: {opened, stays} <= set(browser.ports()), "the open ports")
            wait_until(lambda: closes not in browser.ports(), "the closed port to disappear")


DELAY_THE_LISTING = """
    const ask = window.fetch;
    window.fetch = async (path, options) => {
      const response = await ask(path, options);
      if (path === "/api/v0/listening-ports") await new Promise(release => { window.release = release; });
      return response;
    };
"""


@pytest.fixture
def reloading(tmp_path):
    """A daemon whose method `reload()` changes its scope, which causes a gap in the event stream."""
    config = tmp_path / "portwatch.toml"
    config.write_text("")

    def reload():
        config.write_text("not-port = [1, 2]\n")
        daemon.process.send_signal(signal.SIGHUP)

    with serving("--config", str(config)) as daemon:
        daemon.reload = reload
        yield daemon


def test_changes_that_arrive_during_the_reload_after_a_gap_are_not_lost(browser, reloading):
    with socket.create_server(("127.0.0.1", 0)) as closing:
        closes = closing.getsockname()[1]
        wait_until(lambda: reloading.ports(f"?port={closes}"), "the port")
        browser.open(reloading.port)
        browser.run(DELAY_THE_LISTING)
        reloading.reload()
        wait_until(lambda: browser.run("return window.release !== undefined"), "the listing")
    with socket.create_server(("127.0.0.1", 0)) as opening:
        opens = opening.getsockname()[1]
        wait_until(lambda: reloading.ports(f"?port={opens}"), "the open")
        wait_until(lambda: not reloading.ports(f"?port={closes}"), "the close")
        browser.run("window.release()")
        wait_until(lambda: opens in browser.ports() and closes not in browser.ports(), "the open ports")
        assert f"close tcp 127.0.0.1:{closes} " in "\n".join(browser.changes())
        browser.wait_for("live")


def test_if_the_listing_fails_after_a_gap_the_page_requests_it_again(browser, reloading):
    browser.open(reloading.port)
    browser.run(
        """
        const ask = window.fetch;
        window.fetch = () => { window.fetch = ask; return Promise.reject(new TypeError("no route")); };
        const state = document.getElementById("state");
        new MutationObserver(() => { window.wasLost ||= state.dataset.state === "lost"; })
          .observe(state, { attributes: true });
        """
    )
    reloading.reload()
    wait_until(lambda: browser.run("return window.wasLost"), "the failure to be shown")
    browser.wait_for("live")


def test_a_hanging_connection_is_shown_as_lost_until_the_daemon_answers_again(browser):
    with serving() as daemon, socket.create_server(("127.0.0.1", 0)) as closing:
        closes = closing.getsockname()[1]
        wait_until(lambda: daemon.ports(f"?port={closes}"), "the port")
        browser.open(daemon.port)
        daemon.process.send_signal(signal.SIGSTOP)
        browser.wait_for("lost", patience=3 * PATIENCE)
        closing.close()
        with socket.create_server(("127.0.0.1", 0)) as opening:
            opens = opening.getsockname()[1]
            daemon.process.send_signal(signal.SIGCONT)
            browser.wait_for("live", patience=3 * PATIENCE)
            wait_until(lambda: opens in browser.ports() and closes not in browser.ports(), "the open ports")


def test_if_the_daemon_has_newer_events_a_silent_stream_is_restarted(page, daemon):
    page.run("source.close()")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
        for _ in range(2):
            page.run("return poll()")
        wait_until(lambda: port in page.ports(), "the port")
        page.wait_for("live")


def test_hidden_tabs_close_their_streams_so_that_more_than_six_tabs_can_be_open(browser, daemon):
    for _ in range(7):
        browser.open(daemon.port)
        browser.driver.switch_to.new_window("tab")
    for tab in browser.driver.window_handles[:-1]:
        browser.driver.switch_to.window(tab)
        browser.wait_for("live")
        wait_until(lambda: browser.run("return source.readyState") == 1, "the stream")
    for tab in browser.driver.window_handles[1:]:
        browser.driver.switch_to.window(tab)
        browser.driver.close()
    browser.driver.switch_to.window(browser.driver.window_handles[0])


def test_a_new_page_shows_changes_from_before_it_was_opened(browser):
    with serving() as daemon:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            wait_until(lambda: daemon.ports(f"?port={port}"), "the port")
        wait_until(lambda: not daemon.ports(f"?port={port}"), "the port to close")
        browser.open(daemon.port)
        wait_until(
            lambda: len([change for change in browser.changes() if f":{port} " in change]) == 2, "both changes"
        )
        bars = browser.find("#timeline")
        wait_until(
            lambda: re.search("[1-9] opened, .*[1-9] closed", bars.get_attribute("aria-label")), "the bars"
        )
        assert port not in browser.ports()
        assert browser.find("#unknown").is_displayed()


def test_a_timeline_without_missed_events_has_no_unknown_spans(page):
    page.run("knownFrom = 0; unknown.length = 0; drawTimeline()")
    assert not page.find("#unknown").is_displayed()


def test_the_button_changes_the_theme_and_the_auto_theme_follows_the_system(page):
    def background():
        return page.run("return getComputedStyle(document.body).backgroundColor")

    seen = {}
    for _ in range(3):
        page.find("#theme").click()
        seen[page.find("#theme").text] = background()
    assert seen["theme: dark"] != seen["theme: light"]
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert page.find("#theme").text == "theme: auto"
    assert background() == seen["theme: dark"]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_on_a_small_screen_the_page_is_not_wider_than_the_screen(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True},
    )
    assert page.run("return document.documentElement.scrollWidth") == 360
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_loads_nothing_from_other_servers(page, daemon):
    urls = page.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert urls
    assert all(name.startswith(f"http://127.0.0.1:{daemon.port}/") for name in urls)


def test_only_the_first_1000_ports_are_shown_and_a_note_says_so(page, listener):
    wait_until(lambda: listener in page.ports(), "the port")
    page.run(
        """
        const listener = { ...[...listeners.values()][0], kind: 'open', origin: 'snapshot' };
        for (let n = 1; n <= 5000; n++)
            updateListeners({ ...listener, row: undefined, text: undefined, inode: -n, port: n });
        drawSoon();
        """
    )
    wait_until(lambda: len(page.ports()) == 1000, "the first 1000 ports")
    assert "The first 1000 of 50" in page.find("#empty").text
