"""From listen() to the moment a browser has handled the event."""

import shutil
import socket
import statistics
import sys
import time

from common import begin, daemon, judge, percentile, show
from selenium import webdriver

OPENS = 300
FIRST_PORT = 21_000
PAUSE = 0.02
KEEP = """
    window.heard = {};
    const source = new EventSource('/api/v0/events');
    source.addEventListener('open', message => {
      if (!message.data) { window.listening = true; return; }
      window.heard[JSON.parse(message.data).port] = performance.timeOrigin + performance.now();
    });
"""


def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def measure(browser):
    begun = {}
    for port in range(FIRST_PORT, FIRST_PORT + OPENS):
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            begun[port] = time.time_ns() / 1e6
            server.listen()
            time.sleep(PAUSE)
    time.sleep(1)
    heard = browser.execute_script("return window.heard")
    return [heard[str(port)] - when for port, when in begun.items() if str(port) in heard]


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
            late = measure(browser)
        finally:
            browser.quit()
    show("events that came", f"{len(late)} of {OPENS}")
    show("p50", f"{statistics.median(late):.1f} ms")
    judge("p99", percentile(late, 99), "ms", most=50)


main()
