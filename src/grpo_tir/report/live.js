
// A running job ------------------------------------------------------------------------------------------------------
// The page asks its server for new data and draws it in place: scrolling, filters, the open trajectory, focus and open
// details stay as they are.

const EVERY = 2000; // milliseconds

async function follow() {
  const root = document.documentElement, say = (words) => { $("#live").textContent = words; };
  if (root.dataset.ready === undefined) return setTimeout(follow, EVERY); // the first drawing is not finished
  $("#live").hidden = false;
  try {
    const answer = await fetch("/data", { headers: { "If-None-Match": root.dataset.version }, cache: "no-store" });
    if (answer.status === 200) await refresh(await answer.json());
    else if (answer.status !== 304) throw new Error(answer.status);
    const steps = report.runs.map((run) => run.steps[run.steps.length - 1] ?? 0);
    say(`live · step ${steps.join(", ")}`);
  } catch (error) {
    say(error instanceof TypeError ? "grpo-tir watch has ended" : `not updated: ${error.message}`);
  }
  setTimeout(follow, EVERY);
}

async function refresh({ version, chunks }) {
  for (const node of document.querySelectorAll('script[type="text/plain"]')) if (!(node.id in chunks)) node.remove();
  for (const [name, text] of Object.entries(chunks)) {
    const node = document.getElementById(name) || document.body.appendChild(h("script", { type: "text/plain", id: name }));
    if (node.textContent !== text) node.textContent = text;
  }
  report = await unpack("data");
  drawHero();
  drawFigures();
  drawTables();
  await refreshBrowser();
  document.documentElement.dataset.version = version;
}

/** Add new groups to the list. The open group stays open and keeps its position. */
function refreshBrowser() {
  if ($("#browser").hidden) return openBrowser();
  const list = $("#list"), current = browse.shown[browse.at], from = browse.at, top = list.scrollTop;
  traces = report.traces;
  unpacked.clear(); // new data numbers the chunks again
  gatherGroups();
  fillControls();
  matchGroups();
  if (!current) return select(0);
  browse.at = browse.shown.findIndex((group) => group.key === current.key);
  drawList();
  list.scrollTop = top + (browse.at < 0 ? 0 : (browse.at - from) * ROW);
  drawList();
  drawMap();
  const across = $(".across"), group = groups.find((one) => one.key === current.key);
  if (across && group && !across.contains(document.activeElement)) across.replaceWith(acrossTraining(group));
}

setTimeout(follow, EVERY);
