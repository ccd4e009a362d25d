// Texts come from anywhere: they go into the page as textContent only.
const $ = (id) => document.getElementById(id);
const number = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
let license = "";
let newest = 0;
let shown = ""; // step and index of the status on the page

function copy(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

// A bar between the lowest and the highest of the scores shown.
function score(name, value, all) {
  const row = copy("score");
  const meter = row.querySelector("meter");
  const low = Math.min(...all), high = Math.max(...all);
  row.querySelector("dt").textContent = name;
  row.querySelector("span").textContent = number(value, 2);
  meter.setAttribute("aria-label", name);
  meter.max = 1;
  meter.value = high > low ? 0.05 + 0.95 * (value - low) / (high - low) : 1;
  return row;
}

function passage(found, all) {
  const item = copy("passage");
  const text = item.querySelector(".text");
  item.querySelector("h3 bdi").textContent = found.title || "untitled";
  if (found.end > found.start) {
    // Offsets count code points, as in Python; a JavaScript string counts UTF-16 units.
    const characters = Array.from(found.text);
    const mark = document.createElement("mark");
    mark.textContent = characters.slice(found.start, found.end).join("");
    text.append(characters.slice(0, found.start).join(""), mark, characters.slice(found.end).join(""));
  } else {
    text.textContent = found.text;
  }
  const scores = item.querySelector("dl");
  scores.append(score("retrieval", found.retrieval_score, all.map((p) => p.retrieval_score)));
  if (found.reader_score !== undefined) {
    scores.append(score("reader", found.reader_score, all.map((p) => p.reader_score)));
  }
  item.querySelector(".license").textContent = license;
  item.querySelector(".id").textContent = found.id;
  return item;
}

function show(result) {
  const passages = result.evidence ?? result.passages;
  const { search_ms, reading_ms } = result.latency;
  const withoutAnswer = result.null_probability ?? null; // only some runs have learnt it
  $("message").textContent = "";
  $("answer").textContent = result.answer ?? `${passages.length} passages found`;
  $("latency").textContent =
    (result.probability === undefined ? "" : `probability ${number(result.probability, 2)} · `) +
    (withoutAnswer === null ? "" : `no answer ${number(withoutAnswer, 2)} · `) +
    `search ${number(search_ms, 1)} ms` + (result.evidence ? ` · reading ${number(reading_ms, 1)} ms` : "");
  $("passages-title").hidden = false;
  $("passages").replaceChildren(...passages.map((p) => passage(p, passages)));
  if (`${result.step} ${result.index_version}` !== shown) showStatus().catch(() => {}); // newer ones are in use
}

async function fetchJson(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const result = await response.json().catch(() => null); // a proxy's own page is no JSON
  if (!response.ok) throw new Error(result?.error ?? `the server says ${response.status} ${response.statusText}`);
  if (result === null) throw new Error("what came is not JSON; is this the server's own address?");
  return result;
}

async function ask(event) {
  event.preventDefault();
  const mine = ++newest; // a later question's answer is not overwritten by an earlier one's
  const searcher = new FormData($("form")).get("searcher");
  $("message").textContent = "Searching …";
  try {
    const path = $("search-only").checked ? "api/search" : "api/ask";
    const result = await fetchJson(path, { question: $("question").value, searcher });
    if (mine === newest) show(result);
  } catch (error) {
    if (mine !== newest) return;
    for (const id of ["answer", "latency", "passages"]) $(id).replaceChildren();
    $("passages-title").hidden = true;
    $("message").textContent = `No answer: ${error.message}`;
  }
}

// When the index was published, and how long ago that is.
function published(date) {
  if (!date) return "";
  const then = new Date(date);
  const hours = Math.max(0, Date.now() - then) / 3_600_000;
  const [value, unit] = hours < 1 ? [60 * hours, "minute"] : hours < 48 ? [hours, "hour"] : [hours / 24, "day"];
  const ago = new Intl.RelativeTimeFormat("en").format(-Math.floor(value), unit);
  return `, published ${then.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })}, ${ago}`;
}

async function showStatus() {
  const status = await fetchJson("api/status");
  shown = `${status.step} ${status.index_version}`;
  license = [status.source, status.license].filter(Boolean).join(" · ") || "source and licence not given";
  $("corpus").textContent = `${status.num_passages.toLocaleString("en")} passages · ${license}`;
  $("index").textContent =
    `Index ${status.index_version} (${status.index_searcher}) · parameters of step ${status.step}, ` +
    `index ${number(status.index_age, 0)} steps old` + published(status.index_published);
  $("searchers").hidden = status.index_searcher === "exact" || !status.searchers.includes("exact");
  if (!status.can_answer) {
    $("search-only").checked = $("search-only").disabled = true;
  }
}

$("form").addEventListener("submit", ask);
$("question").addEventListener("input", () => ($("message").textContent = ""));
showStatus().catch((error) => ($("message").textContent = `No status: ${error.message}`));
