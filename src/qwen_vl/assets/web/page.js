// The page's script. Gradio runs it once, as the body of a function with `trigger(event, data)`, which calls a handler on the server.
// All elements come from the server and are replaced at any time, so every listener sits on the document.

const find = (selector, root = document) => root.querySelector(selector);
const MAX_BYTES = 20 * 2 ** 20; // of one picture's file
const MAX_TOTAL_BYTES = 22 * 2 ** 20; // of all pictures of a question: with base64 and the rest, what the server takes at once
const TAKEN_WITHIN_MS = 60_000;
const KEPT_SIDE = 4096; // pixels; larger pictures are reduced before they are sent, if they must be converted anyway
const READABLE = ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif"];

// What is being written; turn: the index of the earlier question that is edited. A picture has its content, or, if the edited question came with it,
// its place there: `kept`.
const draft = { pictures: [], turn: null };
let sent = null; // the last draft, until the server has taken it
let sticks = true; // whether the conversation follows its end

const field = () => find("#composer textarea");
const language = () => document.documentElement.lang.slice(0, 2);
const isBusy = () => sent !== null || find("#live [data-busy]") !== null;

// -- language and theme

function remember(key, value) {
  try { localStorage.setItem(`qwen-vl-${key}`, value); } catch { /* private windows refuse; then it is asked again next time */ }
}

function recall(key) {
  try { return localStorage.getItem(`qwen-vl-${key}`); } catch { return null; }
}

function speak(wanted) {
  remember("language", wanted);
  trigger("speak", { language: wanted });
}

function setTheme(isDark) {
  document.body.classList.toggle("dark", isDark);
  document.documentElement.style.colorScheme = isDark ? "dark" : "light";
}

// -- the composer

function grow() {
  const area = field();
  if (!area) return;
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, window.innerHeight * 0.3)}px`;
  document.body.classList.toggle("can-send", area.value.trim() !== "");
}

function warn(text) {
  const line = find("#composer .warning");
  if (line) line.textContent = text;
}

function showDraft() {
  const chips = find("#composer .chips");
  if (!chips) return;
  chips.replaceChildren(...draft.pictures.map((picture, index) => {
    const item = document.createElement("li");
    const image = document.createElement("img");
    const remove = document.createElement("button");
    image.src = picture.url;
    image.alt = picture.name;
    remove.type = "button";
    remove.textContent = "×";
    remove.dataset.action = "remove";
    remove.dataset.index = index;
    remove.setAttribute("aria-label", chips.dataset.remove.replace("{name}", picture.name));
    item.append(image, remove);
    return item;
  }));
  document.body.classList.toggle("is-editing", draft.turn !== null);
  grow();
}

function setDraft(question, pictures, turn) {
  draft.pictures = pictures;
  draft.turn = turn;
  const area = field();
  if (area) area.value = question;
  showDraft();
}

async function converted(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, KEPT_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

async function addPictures(files) {
  warn("");
  for (const file of files) {
    const room = Math.min(MAX_BYTES, MAX_TOTAL_BYTES - draft.pictures.reduce((sum, { content }) => sum + (content?.size ?? 0), 0));
    let content = file;
    if (!READABLE.includes(file.type) || file.size > room) {
      // Other formats, if this browser knows them, and files that are too large.
      content = await converted(file).catch(() => file);
    }
    if (!content || content.size > room) {
      warn(find("#composer form").dataset.tooLarge.replace("{name}", file.name).replace("{limit}", MAX_BYTES / 2 ** 20));
      continue;
    }
    draft.pictures.push({ name: file.name || "picture", url: URL.createObjectURL(content), content });
  }
  showDraft();
  field()?.focus();
}

function toDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = reject;
    reader.readAsDataURL(blob);
  });
}

// Note what was sent, until the server has taken it; if it never does, the question comes back.
function noteSent(question, pictures, turn) {
  const mine = sent = { question, pictures, turn };
  sticks = true;
  warn("");
  find("#notice .notice")?.remove();
  noticed();
  setTimeout(() => { if (sent === mine) giveBack(); }, TAKEN_WITHIN_MS);
}

function giveBack() {
  const { question, pictures, turn } = sent;
  sent = null;
  const isThere = turn !== null && find(`.turn[data-turn="${turn}"]`) !== null;
  if (question && field()?.value === "") setDraft(question, isThere ? pictures : pictures.filter(({ content }) => content), isThere ? turn : null);
  noticed();
}

async function send() {
  const question = field()?.value ?? "";
  if (isBusy() || !question.trim()) return;
  noteSent(question, draft.pictures, draft.turn);
  const { pictures, turn } = sent;
  const fresh = pictures.filter(({ content }) => content);
  const read = await Promise.all(fresh.map(async ({ name, content }) => ({ name, data: await toDataUri(content) })));
  const kept = pictures.filter(({ content }) => !content).map((picture) => picture.kept);
  setDraft("", [], null);
  trigger("ask", { question, language: language(), pictures: read, ...(turn === null ? {} : { turn, kept }) });
}

function ask(data) {
  if (isBusy()) return;
  noteSent("", [], null);
  trigger("ask", { ...data, language: language() });
}

// -- actions of buttons

const number = (text) => (text === undefined ? null : Number(text));

const actions = {
  send: () => send(),
  stop: () => trigger("halt", {}),
  clear: () => { sent = null; setDraft("", [], null); trigger("wipe", {}); field()?.focus(); },
  again: () => ask({ again: true }),
  example: (button) => ask({ example: Number(button.dataset.example) }),
  view: (button) => trigger("look", { turn: Number(button.dataset.turn), picture: number(button.dataset.picture) }),
  download: (button) => trigger("save", { kind: button.dataset.kind }),
  upload: () => find("#composer input[type=file]").click(),
  remove: (button) => { draft.pictures.splice(Number(button.dataset.index), 1); showDraft(); field()?.focus(); },
  edit: (button) => {
    const shots = [...button.closest(".turn").querySelectorAll(".shot img")];
    setDraft(button.dataset.question, shots.map((image, kept) => ({ name: image.alt, url: image.src, kept })), Number(button.dataset.turn));
    field()?.focus();
  },
  "cancel-edit": () => setDraft("", [], null),
  "close-notice": () => find("#notice .notice")?.remove(),
  language: (button) => speak(button.dataset.language),
  theme: () => {
    const isDark = !document.body.classList.contains("dark");
    remember("theme", isDark ? "dark" : "light");
    setTheme(isDark);
  },
  settings: () => {
    const isOpen = document.body.classList.toggle("with-settings");
    const opener = find("#head [data-action=settings]");
    opener?.setAttribute("aria-expanded", String(isOpen));
    (isOpen ? find("#settings [data-action=settings]") : opener)?.focus();
  },
  copy: async (button) => {
    await navigator.clipboard?.writeText(button.dataset.text).catch(() => undefined);
    button.title = button.dataset.done;
    button.classList.add("is-done");
    setTimeout(() => button.classList.remove("is-done"), 1500);
  },
};

document.addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  const button = target?.closest("[data-action]");
  if (button) {
    event.preventDefault();
    actions[button.dataset.action]?.(button);
    return;
  }
  const phrase = target?.closest("mark.phrase");
  if (phrase) trigger("look", { turn: Number(phrase.dataset.ref.split("-")[0]), picture: null });
});

document.addEventListener("submit", (event) => {
  if (event.target.closest("#composer")) { event.preventDefault(); send(); }
});
document.addEventListener("input", (event) => { if (event.target === field()) grow(); });
document.addEventListener("change", (event) => {
  if (event.target.matches("#composer input[type=file]")) {
    addPictures([...event.target.files]);
    event.target.value = "";
  }
});

document.addEventListener("keydown", (event) => {
  // While a Chinese word is being spelled, Enter and Esc belong to the input method.
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Enter" && !event.shiftKey && event.target === field()) {
    event.preventDefault();
    send();
  } else if (event.key === "Escape") {
    if (document.body.classList.contains("with-settings")) actions.settings();
    else if (isBusy()) actions.stop();
    else if (draft.turn !== null) actions["cancel-edit"]();
  }
});

// -- pictures by paste and by drag and drop

const imagesOf = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));

document.addEventListener("paste", (event) => {
  const files = imagesOf(event.clipboardData);
  if (files.length) { event.preventDefault(); addPictures(files); }
});

let depth = 0; // of the elements that a dragged file is over
const dragsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
const showDrop = () => document.body.classList.toggle("is-dropping", depth > 0);

document.addEventListener("dragenter", (event) => { if (dragsFiles(event)) { depth += 1; showDrop(); } });
document.addEventListener("dragleave", (event) => { if (dragsFiles(event)) { depth = Math.max(depth - 1, 0); showDrop(); } });
document.addEventListener("dragover", (event) => { if (dragsFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!dragsFiles(event)) return;
  event.preventDefault();
  depth = 0;
  showDrop();
  addPictures(imagesOf(event.dataTransfer));
});

// -- a box, its line in the list and its phrase light up together; a phrase lights all of its boxes

function light(event, isOn) {
  const { ref, shape } = (event.target instanceof Element && event.target.closest("[data-ref]")?.dataset) || {};
  if (!ref) return;
  const others = shape ? `[data-shape="${CSS.escape(shape)}"], .phrase[data-ref="${CSS.escape(ref)}"]` : `[data-ref="${CSS.escape(ref)}"]`;
  for (const element of document.querySelectorAll(others)) element.classList.toggle("is-lit", isOn);
  document.body.classList.toggle("has-lit", isOn);
}

for (const [on, off] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
  document.addEventListener(on, (event) => light(event, true));
  document.addEventListener(off, (event) => light(event, false));
}

// -- what the server sends

window.qwenVlSave = (file) => {
  if (!file) return;
  const bytes = Uint8Array.from(atob(file.base64), (char) => char.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: file.type }));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

function noticed() {
  const words = find("#head [data-page-language]")?.dataset;
  if (words && document.documentElement.lang !== words.pageLanguage) {
    document.documentElement.lang = words.pageLanguage;
    for (const name of ["conversation", "look", "settings"]) find(`#${name}`)?.setAttribute("aria-label", words[name]);
  }
  const notice = find("#notice .notice");
  if (sent !== null && notice) giveBack(); // refused: it can be mended and sent again
  if (sent !== null && find("#live [data-busy]")) sent = null;
  document.body.classList.toggle("is-empty", find("#history .welcome") !== null);
  document.body.classList.toggle("is-busy", isBusy());
  const chips = find("#composer .chips");
  if (chips && chips.children.length !== draft.pictures.length) showDraft(); // the composer came anew, in another language
  const end = find("#conversation");
  if (end && sticks && find(".turn")) end.scrollTop = end.scrollHeight;
}

function setUp() {
  const roles = {
    "#status": { role: "status", "aria-live": "polite" },
    "#settings": { role: "dialog", "aria-modal": "false" },
    "#conversation": { role: "region", tabindex: "0" },
    "#look": { role: "region" },
  };
  for (const [selector, attributes] of Object.entries(roles)) {
    for (const [name, value] of Object.entries(attributes)) find(selector)?.setAttribute(name, value);
  }
  document.documentElement.lang = ""; // until the first look at the page's own
  const theme = recall("theme");
  setTheme(theme ? theme === "dark" : document.body.classList.contains("dark"));
  const wanted = recall("language") ?? navigator.language.slice(0, 2);
  if (wanted === "zh") trigger("speak", { language: "zh" });
  const scroller = find("#conversation");
  scroller?.addEventListener("scroll", () => { sticks = scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 80; });
  new MutationObserver(noticed).observe(find("#columns") ?? document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-busy"] });
  new MutationObserver(noticed).observe(find("#head") ?? document.body, { childList: true, subtree: true, attributes: true });
  noticed();
  grow();
  document.body.classList.add("is-ready");
}

// The other components are there when this one is, but their content may come a moment later.
(function wait() {
  if (find("#composer textarea") && find("#head header") && find("#history")) setUp();
  else requestAnimationFrame(wait);
})();
