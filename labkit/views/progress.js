// The live progress view: draws what labkit/views/progress.py sends. Plain DOM, no build step, nothing loaded from a network.
// It replaces the plain table (an element with data-labkit-live) wherever the page shows that output, so that a notebook
// that is only viewed has the table and no broken widget.
// Neutral elements with roles instead of lists and headings, because the notebook styles those itself.
// Every text is set as text, never as markup. Open labs and the keyboard focus survive an update.

function make(tag, { text, ...attributes } = {}, children = []) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// How much of `whole` is done, as a bar of its own width; the words beside it say the same.
function makeBar(kind, done, whole) {
  const share = whole > 0 ? Math.min(1, done / whole) : 0;
  const fill = make("span", { class: "labkit-fill", style: `width:${(100 * share).toFixed(0)}%` });
  return make("span", { class: `labkit-bar labkit-${kind}`, "aria-hidden": "true" }, [fill]);
}

function makeCell(kind, label, done, whole) {
  const words = make("span", { class: "labkit-words", text: `${label} ${done} of ${whole}` });
  return make("span", { class: "labkit-cell" }, [words, makeBar(kind, done, whole)]);
}

function makeDetails(lab, id, isOpen) {
  const items = lab.exercises.map((one) => {
    const notes = one.notes ? ` (${one.notes})` : "";
    const line = make("div", { role: "listitem", class: "labkit-item" }, [
      make("span", { class: "labkit-mark", text: one.mark, "aria-hidden": "true" }),
      make("span", { text: `${one.state}: ${one.title}${notes}` }),
    ]);
    if (one.sentence && one.state !== "open") line.append(make("div", { class: "labkit-said", text: one.sentence }));
    return line;
  });
  items.push(...lab.predictions.map((text) => make("div", { role: "listitem", class: "labkit-item" }, [
    make("span", { class: "labkit-mark", text: "?", "aria-hidden": "true" }),
    make("span", { text: `prediction ${text}` }),
  ])));
  const details = make("div", { id, class: "labkit-details" }, [
    make("div", { text: `${lab.question} Open ${lab.path} to work on it.` }),
    make("div", { role: "list" }, items),
  ]);
  details.hidden = !isOpen;
  return details;
}

function makeLab(lab, prefix, open) {
  const id = `${prefix}-${lab.number}`;
  const button = make("button", {
    type: "button", class: "labkit-lab", "data-lab": lab.number, "aria-expanded": String(open.has(lab.number)),
    "aria-controls": id,
  }, [
    make("span", { class: "labkit-name" }, [
      make("span", { class: "labkit-mark", text: lab.mark, "aria-hidden": "true" }),
      make("strong", { text: lab.number }),
      make("span", { text: ` ${lab.title} ` }),
      make("span", { class: "labkit-state", text: lab.state }),
    ]),
    makeCell("done", "exercises", lab.done, lab.required),
    makeCell("done", "quiz", lab.quizDone, lab.quiz),
    makeCell("minutes", "minutes", lab.minutes, lab.cardMinutes),
  ]);
  const details = makeDetails(lab, id, open.has(lab.number));
  button.addEventListener("click", () => {
    const isOpen = details.hidden;
    details.hidden = !isOpen;
    button.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) open.add(lab.number);
    else open.delete(lab.number);
  });
  return make("div", { role: "listitem" }, [button, details]);
}

function takePlace(model, element) {
  const prefix = `labkit-${Math.random().toString(36).slice(2)}`;
  const open = new Set();
  const next = make("div", { class: "labkit-next", role: "status", "aria-live": "polite" });
  const body = make("div");
  const notes = make("div", { class: "labkit-notes" });
  const root = make("section", { class: "labkit-progress", "aria-label": "progress through the course" },
    [next, body, notes]);

  function draw() {
    const content = model.get("content");
    const focused = root.contains(document.activeElement) ? document.activeElement.dataset.lab : undefined;
    if (next.textContent !== content.next) next.textContent = content.next; // read aloud only when it is news
    body.replaceChildren(...content.phases.flatMap((phase) => [
      make("div", { role: "heading", "aria-level": "4", class: "labkit-phase", text: phase.title }),
      make("div", { role: "list" }, phase.labs.map((lab) => makeLab(lab, prefix, open))),
    ]));
    notes.replaceChildren(...[content.predictions, ...content.damaged].map((text) => make("div", { text })));
    if (focused !== undefined) body.querySelector(`[data-lab="${CSS.escape(focused)}"]`)?.focus();
  }

  draw();
  element.replaceChildren(root);
  model.on("change:content", draw);
}

// JupyterLab makes an output's element when it comes near the screen, and makes it again when it likes: keep looking.
function initialize({ model }) {
  const taken = new WeakSet();
  const key = CSS.escape(model.get("key"));
  const timer = setInterval(() => {
    for (const element of document.querySelectorAll(`[data-labkit-live="${key}"]`)) {
      if (!taken.has(element)) takePlace(model, element);
      taken.add(element);
    }
  }, 300);
  return () => clearInterval(timer);
}

export default { initialize };
