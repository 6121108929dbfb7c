"""Latency from listen() to a browser's event handler, and to the row on the page."""

import shutil
import socket
import statistics
import sys
import time

from common import begin, daemon, judge, percentile, show
from selenium import webdriver

FIRST_PORT = 21_000
RECORD_TIMES = """
    window.received = {};
    window.shown = {};
    const now = () => performance.timeOrigin + performance.now();
    new MutationObserver(changes => {
      for (const change of changes)
        for (const row of change.addedNodes) window.shown[row.cells[0].textContent] ??= now();
    }).observe(document.getElementById('rows'), { childList: true });
    const source = new EventSource('/api/v0/events');
    source.addEventListener('open', message => {
      if (!message.data) { window.listening = true; return; }
      window.received[JSON.parse(message.data).port] = now();
    });
"""


def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def measure(browser, where, opens, pause):
    """Open ports and return the 99th percentile of the delays in milliseconds.

    `where` names the browser's variable with the times: "received" by an event handler, or "shown" on the page.
    """
    begun = {}
    browser.execute_script(f"window.{where} = {{}}")
    for port in range(FIRST_PORT, FIRST_PORT + opens):
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            begun[port] = time.time_ns() / 1e6
            server.listen()
            time.sleep(pause)
    time.sleep(1)
    times = browser.execute_script(f"return window.{where}")
    delays = [times[str(port)] - start for port, start in begun.items() if str(port) in times]
    show(f"events that were {where}", f"{len(delays)} of {opens}")
    show("p50", f"{statistics.median(delays):.1f} ms")
    return percentile(delays, 99)


def main():
    begin("From listen() to a browser that shows the page")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        sys.exit("   needs Chromium and its driver; run: scripts/provision.sh page")
    with daemon() as (_, port):
        browser = chromium()
        try:
            browser.get(f"http://127.0.0.1:{port}/")
            browser.execute_script(RECORD_TIMES)
            while not browser.execute_script("return window.listening"):
                time.sleep(0.05)
            judge("p99", measure(browser, "received", opens=300, pause=0.02), "ms", most=50)
            judge("p99", measure(browser, "shown", opens=60, pause=0.2), "ms", most=1000)
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
