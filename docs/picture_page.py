"""Takes docs/page.png and docs/page-phone-dark.png: the page of a run, asked, in a Chromium.

pip install -e '.[serve,browser]' and a Chromium (Debian: apt-get install chromium)
python docs/picture_page.py --workdir=runs/tiny    # the run of realm_jax/weights/tiny/README.md
"""

import argparse
import pathlib
import shutil
import threading

import uvicorn
from playwright.sync_api import expect, sync_playwright

from realm_jax.serve import listen
from realm_jax.serving.open_qa import OpenQA
from realm_jax.serving.web import create_app

DOCS = pathlib.Path(__file__).parent
QUESTION = "Which philosopher was the father of Mary Shelley?"
PICTURES = {
  "page.png": {"viewport": {"width": 760, "height": 720}},
  "page-phone-dark.png": {"viewport": {"width": 360, "height": 720}, "color_scheme": "dark"},
}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True)
  open_qa = OpenQA.load(parser.parse_args().workdir)
  open_qa.answers([QUESTION])  # so that the pictures show no time to compile
  listening = listen("127.0.0.1", 0)
  server = uvicorn.Server(uvicorn.Config(create_app(open_qa, allowed_hosts=("127.0.0.1",)), log_level="warning"))
  thread = threading.Thread(target=server.run, args=([listening],))
  thread.start()
  try:
    with sync_playwright() as started:
      browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
      for name, context in PICTURES.items():
        page = browser.new_context(**context).new_page()
        page.goto(f"http://127.0.0.1:{listening.getsockname()[1]}/", wait_until="networkidle")
        page.get_by_label("Question").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("#passages li").first).to_be_visible()
        page.screenshot(path=DOCS / name, full_page="color_scheme" not in context)
  finally:
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
  main()
