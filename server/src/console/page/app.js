// The frame: which view is shown, who is logged in, how the cluster is.

import { isLoginNeeded, logIn, logOut, user } from "./api.js";
import { fromBase64 } from "./bytes.js";
import { cluster, followHealth } from "./cluster.js";
import { el, notice } from "./dom.js";
import { key, keys } from "./keys.js";
import { sizes } from "./sizes.js";
import { watch } from "./watch.js";

// A view fills the main part, and returns what ends it.
const VIEWS = { cluster, keys, key, sizes, watch };
const TITLES = { cluster: "Cluster", keys: "Keys", key: "Key", sizes: "Sizes", watch: "Watch" };

const main = document.querySelector("main");
let end = () => {};
// Counts what was to be shown: an answer that comes after the next one was asked for shows nothing.
let shown = 0;

/** `#/view/argument`, the argument in base64. */
function place() {
  const [, view, argument] = location.hash.split("/");
  try {
    return [VIEWS[view] ? view : "cluster", fromBase64(argument)];
  } catch {
    return [VIEWS[view] ? view : "cluster", new Uint8Array()];
  }
}

function frame(view) {
  const tab = view === "key" ? "keys" : view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${tab}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${TITLES[view]} · Pintle`;
  const out = () => {
    logOut();
    show();
  };
  document.querySelector("#user").replaceChildren(
    ...(user() ? [el("span", {}, user()), el("button", { class: "quiet", onclick: out }, "Log out")] : []));
}

async function show() {
  end();
  end = () => {};
  shown += 1;
  const turn = shown;
  const [view, argument] = place();
  main.replaceChildren();
  frame(view);
  let isLoginFirst;
  try {
    isLoginFirst = await isLoginNeeded();
  } catch (error) {
    if (turn === shown) main.replaceChildren(notice("bad", error.message), el("button", { onclick: show }, "Try again"));
    return;
  }
  if (turn !== shown) return;
  if (isLoginFirst) {
    loginForm();
    return;
  }
  const part = el("div");
  main.replaceChildren(part);
  const ends = [VIEWS[view](part, argument, refused), view !== "cluster" && followHealth()].filter(Boolean);
  end = () => ends.forEach((end) => end());
  part.querySelector("h1")?.setAttribute("tabindex", "-1");
}

/** What a view does with an error: another log-in, or a line that says it. */
function refused(error, where) {
  if (error.isForLogin) {
    logOut();
    end();
    end = () => {};
    frame(place()[0]);
    loginForm();
    return;
  }
  where.replaceChildren(notice("bad", error.message));
}

function loginForm() {
  const problem = el("div");
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    try {
      await logIn(form.get("user"), form.get("password"));
      show();
    } catch (error) {
      problem.replaceChildren(notice("bad", error.message));
      event.target.elements.password.select();
    }
  };
  const first = el("input", { name: "user", autocomplete: "username", required: true });
  document.querySelector("#health").textContent = "";
  main.replaceChildren(el("form", { class: "card login", onsubmit: submit },
    el("h1", {}, "Log in"),
    el("p", { class: "soft" }, "Authentication is on. You see what your roles may read."),
    problem,
    el("label", {}, "User", first),
    el("label", {}, "Password", el("input", { name: "password", type: "password", autocomplete: "current-password", required: true })),
    el("button", {}, "Log in")));
  first.focus();
}

addEventListener("hashchange", async () => {
  await show();
  // A screen reader begins to read there; a log-in form has taken the focus itself.
  if (!main.contains(document.activeElement) || document.activeElement === main) main.querySelector("h1")?.focus();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
show();
