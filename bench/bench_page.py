"""From listen() to the moment a browser has handled the event, and to its row in the table."""

import shutil
import socket
import statistics
import sys
import time

from common import begin, daemon, judge, percentile, show
from selenium import webdriver

FIRST_PORT = 21_000
KEEP = """
    window.heard = {};
    window.shown = {};
    const now = () => performance.timeOrigin + performance.now();
    new MutationObserver(changes => {
      for (const change of changes)
        for (const row of change.addedNodes) window.shown[row.cells[0].textContent] ??= now();
    }).observe(document.getElementById('rows'), { childList: true });
    const source = new EventSource('/api/v0/events');
    source.addEventListener('open', message => {
      if (!message.data) { window.listening = true; return; }
      window.heard[JSON.parse(message.data).port] = now();
    });
"""


def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def measure(browser, where, opens, pause):
    """How late each came, by the moments that the browser noted under a name."""
    begun = {}
    browser.execute_script(f"window.{where} = {{}}")
    for port in range(FIRST_PORT, FIRST_PORT + opens):
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            begun[port] = time.time_ns() / 1e6
            server.listen()
            time.sleep(pause)
    time.sleep(1)
    noted = browser.execute_script(f"return window.{where}")
    late = [noted[str(port)] - when for port, when in begun.items() if str(port) in noted]
    show(f"events that were {where}", f"{len(late)} of {opens}")
    show("p50", f"{statistics.median(late):.1f} ms")
    return percentile(late, 99)


def main():
    begin("From listen() to the browser, beside the page that shows it")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        sys.exit("   needs Chromium and its driver: scripts/provision.sh page")
    with daemon() as (_, port):
        browser = chromium()
        try:
            browser.get(f"http://127.0.0.1:{port}/")
            browser.execute_script(KEEP)
            while not browser.execute_script("return window.listening"):
                time.sleep(0.05)
            judge("p99", measure(browser, "heard", opens=300, pause=0.02), "ms", most=50)
            judge("p99", measure(browser, "shown", opens=60, pause=0.2), "ms", most=1000)
        finally:
            browser.quit()


main()
