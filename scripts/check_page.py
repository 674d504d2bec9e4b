#!/usr/bin/env python3
"""The page of `haul serve` in a real browser: a picture goes in, and what is seen is what the API says.

    scripts/check_page.py [--haul BINARY] [--shots FOLDER]

It needs Debian's chromium and chromium-driver, and nothing of Python but its own library; without
them it says so and returns 77. It works on the model that comes with haul and, where
HAUL_PARITY_DATA names a folder with yolov8n.pt and photographs, on these too. With --shots it
leaves screenshots: light and dark, wide and narrow."""

import argparse
import base64
import contextlib
import html.parser
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request

from served import MODEL, PICTURES, ROOT, Served, check, fail, listening, skip

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--window-size=1360,1000", "--force-device-scale-factor=1"]


class Browser:
    """Chromium, by the W3C WebDriver protocol."""

    def __init__(self, folder):
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       start_new_session=True)
        self.session = None
        try:
            until = time.monotonic() + 20
            while not (ports := listening(self.driver.pid)):
                check(time.monotonic() < until, "chromedriver does not listen")
                time.sleep(0.05)
            self.base = f"http://127.0.0.1:{ports[0]}"
            options = {"args": [*FLAGS, f"--user-data-dir={folder}"],
                       "binary": shutil.which("chromium")}
            capabilities = {"browserName": "chrome", "goog:chromeOptions": options,
                            "goog:loggingPrefs": {"browser": "ALL"}}
            made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self.session = f"/session/{made['sessionId']}"
        except BaseException:
            self.end()
            raise

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, method=method,
                                         headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            fail(f"{method} {path}: {error.read().decode()[:2000]}")

    def do(self, path, **body):
        return self.call("POST", self.session + path, body)

    def open(self, url):
        self.do("/url", url=url)

    def run(self, script, *arguments):
        return self.do("/execute/sync", script=script, args=list(arguments))

    def cdp(self, command, **parameters):
        return self.do("/goog/cdp/execute", cmd=command, params=parameters)

    def upload(self, selector, *paths):
        found = self.do("/element", using="css selector", value=selector)[ELEMENT]
        self.do(f"/element/{found}/value", text="\n".join(map(str, paths)))

    def press(self, *keys):
        downs = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.do("/actions", actions=[{"type": "key", "id": "keys", "actions": downs}])

    def console(self):
        """What the console has said since this was asked last."""
        return self.do("/se/log", type="browser")

    def wait(self, script, *arguments, seconds=60):
        until = time.monotonic() + seconds
        while True:
            found = self.run(script, *arguments)
            if found:
                return found
            if time.monotonic() > until:
                fail(f"in {seconds} s this did not come true: {script} {self.console()}")
            time.sleep(0.05)

    def size(self, width, height, mobile=False):
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=2 if mobile else 1, mobile=mobile)

    def scheme(self, name):
        self.cdp("Emulation.setEmulatedMedia",
                 features=[{"name": "prefers-color-scheme", "value": name}])

    def shot(self, path):
        taken = self.cdp("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def end(self):
        with contextlib.suppress(Exception):
            if self.session:
                self.call("DELETE", self.session)
        # Its own session, so that no process of the browser outlives it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGTERM)
        self.driver.wait(20)


ROWS = """return [...document.querySelectorAll('#rows tr')].map((row) => ({
  raw: row.dataset.raw, cells: [...row.cells].map((cell) => cell.textContent)}))"""
SLIDE = """const slider = document.getElementById('conf'); slider.value = arguments[0];
  slider.dispatchEvent(new Event('input')); return slider.value"""
TEXT = "return document.getElementById(arguments[0]).textContent"
SETTLED = """return document.getElementById('found-of').textContent.includes(arguments[0])
  && document.getElementById('busy').hidden && !document.getElementById('canvas').hidden
  && document.getElementById('canvas').getAttribute('aria-label').startsWith(arguments[0])"""
# Where the picture differs from itself with the boxes switched off by the slider.
DATA = "return document.getElementById('canvas').toDataURL()"


def rows_are(browser, server, path, conf):
    """The table is the API's answer at that confidence: label, score, box, and the line's bytes."""
    line = server.infer(path.read_bytes(), name=path.name, conf=conf, boxes="pixels").decode()
    expected = json.loads(line)["detections"]
    rows = browser.run(ROWS)
    check([json.loads(row["raw"]) for row in rows] == expected,
          f"{path.name} at {conf}: {len(rows)} rows, {len(expected)} detections")
    for row, one in zip(rows, expected):
        label, score, box = row["cells"]
        check(label == one["label"], f"{label} is not {one['label']}")
        check(abs(float(score) - one["score"]) <= 0.0005001, f"{score} is not {one['score']}")
        sides = [abs(float(a) - b) for a, b in zip(box.split(), one["box"], strict=True)]
        check(max(sides) <= 0.05001, f"{box} is not {one['box']}")
    check(browser.run(TEXT, "line") == line.rstrip("\n"), f"{path.name} at {conf}: another line")
    return len(expected)


class Texts(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def headers(server):
    status, headers, body = server.ask("GET", "/")
    check(status == 200 and headers["Content-Type"].startswith("text/html"), "no page")
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    check(policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'", f"{policy}")
    check("unsafe" not in headers["Content-Security-Policy"], f"{policy}")
    check(headers["X-Content-Type-Options"] == "nosniff", "nosniff is missing")
    check(headers["Referrer-Policy"] == "no-referrer", "Referrer-Policy is missing")
    page = Texts()
    page.feed(body.decode())
    labelled = {given.get("for") for tag, given in page.found if tag == "label"}
    for tag, given in page.found:
        if tag == "input" and given.get("type") == "file":
            check(given["id"] in labelled, "the file input has no label")
        check("src" not in given, f"<{tag}> loads {given}")


def one_model(browser, server, pictures, turned, shots, name):
    browser.size(1360, 1000)
    browser.scheme("light")
    browser.open(server.url)
    status = server.json("/status")
    browser.wait("return document.getElementById('health').dataset.state === 'good'")
    check(browser.run(TEXT, "endpoint") == status["endpoint"], "another endpoint's name")
    if shots:
        browser.shot(shots / f"{name}-empty.png")
    # The file input, as a person uses it.
    browser.upload("#file", pictures[0])
    browser.wait(SETTLED, pictures[0].name)
    least = status["model"]["conf"]
    found = rows_are(browser, server, pictures[0], least)
    check(found > 0, f"nothing was found in {pictures[0].name}")
    print(f"{name}: {found} detections in the table and from the API at {least}")
    counts = []
    for conf in (0.05, 0.5, 0.9):
        check(browser.run(SLIDE, conf) == str(conf), "the slider does not move")
        counts.append(rows_are(browser, server, pictures[0], conf))
    check(counts == sorted(counts, reverse=True) and counts[0] > counts[-1], f"{counts}")
    print(f"{name}: {counts} at 0.05, 0.5 and 0.9")
    # Boxes are drawn: the picture looks otherwise without them.
    browser.run(SLIDE, 0.25)
    with_boxes = browser.run(DATA)
    browser.run(SLIDE, 0.99)
    if not browser.run(ROWS):
        check(browser.run(DATA) != with_boxes, "no boxes are drawn")
    browser.run(SLIDE, 0.25)
    check(browser.run(DATA) == with_boxes, "the boxes are others after the slider moved")
    # Rows can be walked along with the keyboard, and light their boxes up.
    browser.run("document.querySelector('#rows tr').focus()")
    check(browser.run(DATA) != with_boxes, "the row with the focus lights nothing up")
    browser.press("\ue015")
    check(browser.run("return document.activeElement.dataset.at") == ("1" if found > 1 else None),
          "the arrow does not lead to the next row")
    browser.run("document.activeElement.blur()")
    curl(browser, pictures[0], least)
    # Several at once, one of them turned by EXIF: shown upright, as large as the line says.
    browser.upload("#file", *pictures[1:], turned)
    browser.wait("return document.querySelectorAll('#strip .badge').length === arguments[0] && "
                 "[...document.querySelectorAll('#strip .badge')].every((b) => /^[0-9]/.test(b.textContent))",
                 len(pictures) + 1)
    browser.run("[...document.querySelectorAll('#strip button')].at(-1).click()")
    browser.wait(SETTLED, turned.name)
    rows_are(browser, server, turned, 0.25)
    line = json.loads(browser.run(TEXT, "line"))
    shape = browser.run("const c = document.getElementById('canvas'); return c.width / c.height")
    check(line["height"] > line["width"], f"{turned.name} is not turned: {line}")
    check(abs(shape - line["width"] / line["height"]) < 0.01, f"the canvas is {shape}: {line}")
    print(f"{name}: {turned.name} is upright, {line['width']} x {line['height']}")
    if shots:
        browser.shot(shots / f"{name}-turned.png")
    no_complaints(browser, ())
    refusals(browser, server, shots, name)
    browser.run("document.querySelector('#strip button').click()")
    browser.wait(SETTLED, pictures[0].name)
    for scheme, width in (("light", 1360), ("dark", 1360), ("light", 390), ("dark", 390)):
        browser.scheme(scheme)
        browser.size(width, 1000 if width > 400 else 844, width < 400)
        time.sleep(0.3)
        wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
        check(wide[0] <= width, f"{scheme} {width}: the page is wider than the window: {wide}")
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        light = sum(int(part) for part in ground.strip("rgb()").split(",")) > 380
        check(light == (scheme == "light"), f"{scheme}: the ground is {ground}")
        if shots:
            browser.shot(shots / f"{name}-{scheme}-{width}.png")
    check(browser.run("return document.getElementById('spark').childElementCount") >= 3,
          "there are no bars of latency")
    no_complaints(browser, ())


def curl(browser, path, conf):
    """The command that is shown prints the line that is shown."""
    if not shutil.which("curl"):
        print("skipped: there is no curl")
        return
    browser.run(SLIDE, conf)
    done = subprocess.run(["bash", "-c", browser.run(TEXT, "curl")], cwd=path.parent,
                          capture_output=True, text=True)
    check(done.returncode == 0 and done.stdout == browser.run(TEXT, "line") + "\n",
          f"curl printed {done.stdout[:300]} {done.stderr[:300]}")


def refusals(browser, server, shots, name):
    """What is no picture, and what is too large, is said in words, and a label is only a text."""
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder) / "<img src=x onerror=alert(1)>.txt"
        text.write_text("This is a text.")
        browser.upload("#file", text)
        browser.wait("return !document.getElementById('trouble').hidden")
        said = browser.run(TEXT, "trouble-title"), browser.run(TEXT, "trouble-text")
        check(said[0] == "This is not a picture" and text.name in said[1], f"{said}")
        check(browser.run("return document.querySelectorAll('img').length") == 0, "a name became HTML")
        check(browser.run(ROWS) == [], "there are rows for a text")
        if shots:
            browser.shot(shots / f"{name}-refused.png")
        large = pathlib.Path(folder) / "large.jpg"
        with open(large, "wb") as file:
            file.truncate(server.json("/status")["limits"]["payload_bytes"] + 1)
        browser.upload("#file", large)
        browser.wait("return document.getElementById('trouble-title').textContent === arguments[0]",
                     "This file is too large")
        # The browser itself says of each 4xx that there was one.
        no_complaints(browser, ("status of 400",))


def no_complaints(browser, allowed):
    for entry in browser.console():
        expected = any(words in entry["message"] for words in allowed)
        check(expected, f"the console says {entry['level']} {entry['message']}")


def hostile_label(browser, server, page):
    """A label that is HTML stays a text: answers of the server are replaced on their way."""
    browser.open(server.url)
    browser.wait("return document.getElementById('health').dataset.state === 'good'")
    browser.run("""const real = window.fetch;
      window.fetch = async (what, how) => {
        const answer = await real(what, how);
        if (!String(what).startsWith('invocations')) return answer;
        const line = JSON.parse(await answer.text());
        for (const one of line.detections) one.label = '<b id="hostile">&amp;</b>';
        return new Response(JSON.stringify(line), { status: 200 });
      }""")
    browser.upload("#file", page)
    browser.wait(SETTLED, page.name)
    check(browser.run("return document.getElementById('hostile')") is None, "a label became HTML")
    check("<b id=" in browser.run("return document.querySelector('#rows .label').textContent"),
          "the label is not shown as it is")




def with_token(browser, haul, page):
    """Where the server asks for tokens, the page asks for one, and uses it."""
    said = subprocess.run([haul, "serve", "--help"], capture_output=True, text=True).stdout
    if "--token-file" not in said:
        print("skipped: this haul knows no --token-file")
        return
    with tempfile.TemporaryDirectory() as folder:
        tokens = pathlib.Path(folder) / "tokens"
        tokens.touch(0o600)
        tokens.write_text("correct-horse-battery-staple\n")
        with Served(haul, "--model", MODEL, "--token-file", tokens) as server:
            check(server.ask("GET", "/status")[0] == 401, "the status is open to everybody")
            browser.open(server.url)
            browser.wait("return !document.getElementById('key').hidden")
            type_token = """document.getElementById('token').value = arguments[0];
              document.querySelector('#key button').click()"""
            browser.run(type_token, "wrong")
            browser.wait("return document.getElementById('key-note').textContent !== ''")
            browser.run(type_token, "correct-horse-battery-staple")
            browser.wait("return document.getElementById('key').hidden")
            browser.upload("#file", page)
            browser.wait(SETTLED, page.name)
            check(browser.run(ROWS) != [], "nothing was found with the token")
            check("staple" not in browser.run("return document.body.innerText"), "the token is shown")
            no_complaints(browser, ("status of 401",))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--haul", default=ROOT / "target/release/haul", type=pathlib.Path)
    parser.add_argument("--shots", type=pathlib.Path)
    options = parser.parse_args()
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            skip(f"there is no {program}")
    if not options.haul.exists():
        skip(f"there is no {options.haul}")
    if options.shots:
        options.shots.mkdir(parents=True, exist_ok=True)
    turned = PICTURES / "phone.jpg"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(profile)
        try:
            with Served(options.haul, "--model", MODEL, "--workers", "2") as server:
                headers(server)
                pictures = [PICTURES / "park/picnic.jpg", PICTURES / "pond.jpg",
                            ROOT / "testdata/forms/tiff-orientation6.tif"]
                one_model(browser, server, pictures, turned, options.shots, "shapes")
                hostile_label(browser, server, PICTURES / "pond.jpg")
                url = server.url
                browser.open(url)
                browser.wait("return document.getElementById('health').dataset.state === 'good'")
            browser.wait("return document.getElementById('health').dataset.state === 'bad'")
            check(browser.run(TEXT, "health") == "Cannot be reached", "a dead server looks well")
            browser.console()
            with_token(browser, options.haul, PICTURES / "pond.jpg")
            data = os.environ.get("HAUL_PARITY_DATA")
            if data:
                data = pathlib.Path(data)
                photos = sorted((data / "coco/images").glob("*.jpg"))[:4]
                with Served(options.haul, "--model", data / "weights/yolov8n.pt") as server:
                    one_model(browser, server, photos, turned, options.shots, "yolov8n")
            else:
                print("skipped: HAUL_PARITY_DATA is not set, so no photographs")
        finally:
            browser.end()
    print("the page shows what the API says")


main()
