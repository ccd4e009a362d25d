"""The page of the verb serve, in a browser: what people see, and that no text runs.

Needs the Python package playwright, and a Chromium (Debian: apt-get install chromium).
"""

import shutil
import threading

import pytest
import uvicorn
from hostile import HOSTILE, HostileQA

from realm_jax.serve import listen
from realm_jax.serving.guard import HEADERS
from realm_jax.serving.open_qa import Answer
from realm_jax.serving.web import Limits, create_app

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="apt-get install chromium")]


@pytest.fixture(scope="module")
def browser():
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser):
  """Serves answers, and opens the page: (the page, what its console said, the addresses it called)."""
  running = []

  def open_page(open_qa, **context):
    listening = listen("127.0.0.1", 0)
    app = create_app(open_qa, allowed_hosts=("127.0.0.1",), limits=Limits(requests_per_second=1e6))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(10_000)
    running.append((server, thread, page))
    console, requests = [], []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("dialog", lambda dialog: (console.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    page.goto(address, wait_until="networkidle")
    return page, console, [r.removeprefix(address) for r in requests]

  yield open_page
  for server, thread, page in running:
    page.context.close()
    server.should_exit = True
    thread.join()


class Encyclopedia(HostileQA):
  """Two passages; the answer to every question stands behind a character outside the basic plane."""

  def read(self, questions, score_BK, passage_id_BK):
    return [
      [
        Answer("Marie Curie", 0.75, "1#0", "Radium", "\U0001f9ea Marie Curie found it.", 2, 13, 12.5, 3.25),
        Answer("Pluto", 0.125, "2#0", "Pluto", "Pluto was found in 1930.", 0, 5, 9.25, -1.5),
      ]
      for _ in questions
    ]


def ask(page, question):
  page.get_by_label("Question").fill(question)
  with page.expect_response("**/api/*") as response:
    page.keyboard.press("Enter")
  assert response.value.status == 200


def test_a_question_gets_its_answer(open_page):
  page, console, requests = open_page(Encyclopedia())
  assert sorted(requests) == ["", "api/status", "app.js", "style.css"]
  footer = page.locator("footer").inner_text()
  assert f"1,000 passages · {HOSTILE[0]} · {HOSTILE[1]}" in footer
  assert "Index 3 (scann) · parameters of step 7, index 0 steps old, published Feb 3, 2020, " in footer
  assert " days ago" in footer
  assert page.evaluate("document.activeElement.id") == "question"
  ask(page, "Who found radium?")
  playwright.expect(page.locator("#answer")).to_have_text("Marie Curie")
  playwright.expect(page.locator("mark")).to_have_text(["Marie Curie", "Pluto"])
  playwright.expect(page.locator("h3")).to_have_text(["Radium", "Pluto"])
  assert page.locator("#passages .text").first.inner_text() == "\U0001f9ea Marie Curie found it."
  assert page.locator("meter").evaluate_all("all => all.map(m => m.value)") == [1, 1, 0.05, 0.05]
  assert page.locator("dd").all_inner_texts() == ["12.50", "3.25", "9.25", "-1.50"]
  assert "probability 0.75 · search" in page.locator("#latency").inner_text()
  assert "no answer" not in page.locator("#latency").inner_text()  # this run doesn't read the null passage
  assert not console


def accessibility_tree(page):
  """(role, name, properties) of what assistive technology is told of, in Chromium's own words, in reading order."""
  found = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
  nodes, due = {node["nodeId"]: node for node in found}, [found[0]["nodeId"]]
  while due:
    node = nodes[due.pop()]
    due += reversed(node["childIds"])
    if not node["ignored"]:
      properties = {p["name"]: p["value"].get("value") for p in node["properties"]}
      yield node["role"]["value"], node["name"]["value"], properties


def test_what_assistive_technology_is_told(open_page):
  page, _, _ = open_page(Encyclopedia())
  ask(page, "Who found radium?")
  playwright.expect(page.locator("#answer")).to_have_text("Marie Curie")
  tree = [*accessibility_tree(page)]
  assert [(role, name) for role, name, properties in tree[1:] if properties.get("focusable")] == [
    ("searchbox", "Question"), ("button", "Ask"), ("radio", "ScaNN"), ("radio", "exact"),
    ("checkbox", "retrieval without reading"),
  ]  # fmt: skip
  landmarks = {"banner", "main", "search", "region", "contentinfo"}
  assert [(role, name) for role, name, _ in tree if role in landmarks] == [
    ("banner", ""), ("main", ""), ("search", ""), ("region", "Answer"), ("region", "Passages"), ("contentinfo", ""),
  ]  # fmt: skip
  assert [name for role, name, _ in tree if role == "group"] == ["Search"]
  assert [name for role, name, _ in tree if role == "heading"] == ["REALM", "Passages", "Radium", "Pluto"]
  assert [name for role, name, _ in tree if role == "meter"] == ["retrieval", "reader"] * 2
  # Read aloud when it changes, once what is being said has ended: the answer's region, up to the passages' one.
  (begin,) = [i for i, node in enumerate(tree) if node[:2] == ("region", "Answer")]
  (end,) = [i for i, node in enumerate(tree) if node[:2] == ("region", "Passages")]
  assert tree[begin][2]["live"] == "polite"
  texts = [name for role, name, _ in tree[begin:end] if role == "StaticText"]
  assert texts[0] == "Marie Curie" and texts[1].startswith("probability 0.75 · ") and len(texts) == 2


def test_how_probable_no_answer_is(open_page):
  """Where the run has learnt it: beside the answer's own probability, in the region that is read aloud."""

  class ReadsTheNullPassage(Encyclopedia):
    def read(self, questions, score_BK, passage_id_BK):
      found = super().read(questions, score_BK, passage_id_BK)
      return [[answer._replace(null_probability=0.0625) for answer in answers] for answers in found]

  page, _, _ = open_page(ReadsTheNullPassage())
  ask(page, "Who found radium?")
  playwright.expect(page.locator("#result")).to_contain_text("probability 0.75 · no answer 0.06 · search")
  page.get_by_label("retrieval without reading").check()
  ask(page, "Who found radium?")
  playwright.expect(page.locator("#answer")).to_have_text("5 passages found")
  assert "no answer" not in page.locator("#result").inner_text()


def test_the_switches_choose_searcher_and_reading(open_page):
  open_qa = Encyclopedia()
  page, _, _ = open_page(open_qa)
  page.keyboard.press("Tab")  # from the question to the button, the searcher, and the last switch
  page.keyboard.press("Tab")
  page.keyboard.press("ArrowRight")
  page.keyboard.press("Tab")
  page.keyboard.press("Space")
  ask(page, "x")
  playwright.expect(page.locator("#answer")).to_have_text("5 passages found")
  assert open_qa.searches[-1] is True
  assert page.locator("mark").count() == 0


def test_a_run_that_only_searches(open_page):
  open_qa = HostileQA()
  open_qa.can_read = False
  open_qa.snapshot.manifest["searcher"] = "exact"
  page, _, _ = open_page(open_qa)
  assert not page.locator("#searchers").is_visible()  # nothing to choose
  assert page.get_by_label("retrieval without reading").is_checked()
  assert page.get_by_label("retrieval without reading").is_disabled()


def test_a_refusal_is_told(open_page):
  open_qa = Encyclopedia()
  page, _, _ = open_page(open_qa)
  ask(page, "x")
  playwright.expect(page.locator("#answer")).to_have_text("Marie Curie")
  open_qa.retrieve = None
  page.get_by_label("Question").fill("x")
  page.keyboard.press("Enter")
  playwright.expect(page.get_by_role("status")).to_have_text("No answer: the server failed; its log says why")
  assert page.locator("#result").inner_text().strip() == "No answer: the server failed; its log says why"
  assert page.locator("#passages li").count() == 0


def test_no_hostile_text_runs(open_page):
  page, console, _ = open_page(HostileQA())
  page.evaluate("window.before = document.querySelectorAll('*').length")
  for text in HOSTILE:
    page.get_by_label("Question").fill(text)
    with page.expect_response("**/api/ask") as response:
      page.keyboard.press("Enter")
    evidence = response.value.json()["evidence"]
    page.wait_for_function("t => document.querySelector('#answer').textContent === t", arg=evidence[0]["text"][2:])
    for selector, field in (("h3 bdi", "title"), (".text", "text"), (".id", "id")):
      shown = page.locator(f"#passages {selector}").evaluate_all("all => all.map(e => e.textContent)")
      assert shown == [p[field] for p in evidence]
  assert page.evaluate("window.ran") is None
  # Two passages of a fixed make-up, whatever the texts: li, h3, bdi, p, mark, dl, two scores of 5, p, span, bdi.
  assert page.evaluate("document.querySelectorAll('*').length - window.before") == 2 * 19
  assert not console


def test_the_policy_stops_what_the_page_would_not(open_page):
  """Were a text to become markup some day, its scripts would be forbidden still."""
  page, console, _ = open_page(HostileQA())
  page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=1\">')")
  page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran=1'}))")
  page.wait_for_timeout(200)
  assert page.evaluate("window.ran") is None
  assert any("Content Security Policy" in line for line in console)
  assert "script-src 'self'" in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_in_both_schemes(open_page, scheme):
  page, console, _ = open_page(Encyclopedia(), viewport={"width": 320, "height": 640}, color_scheme=scheme)
  ask(page, "W" * 200)
  playwright.expect(page.locator("#answer")).to_have_text("Marie Curie")
  assert page.evaluate("document.documentElement.scrollWidth") <= 320
  # WCAG's contrast of all texts against what is behind them.
  contrasts = page.evaluate("""() => {
    const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
    const light = (c) => rgb(c).slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => { const c = getComputedStyle(e).backgroundColor;
      return rgb(c)[3] === 0 && e.parentElement ? behind(e.parentElement) : c; };
    const texts = [...document.querySelectorAll("h1, h2, h3, p, label, legend, dt, dd span, mark, button, input")];
    return texts.filter((e) => e.offsetParent).map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); });
  }""")
  assert len(contrasts) > 20 and min(contrasts) >= 4.5
  assert not console
