// The frame around all pages: which address is which page, who one is, light or dark.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { access, ask, askIfThere } from "./api.js";
import { Empty, Failure, Heading, go } from "./ui.js";
import { Studies } from "./studies.js";

/** Pages that few need at first are loaded when they are gone to. @type {[RegExp, string, (found: string[]) => Promise<any>][]} */
const PAGES = [
  [/^\/$/, "Studies", async () => Studies],
  [/^\/studies\/([^/]+)$/, "Study", async () => (await import("./study.js")).StudyPage],
  [/^\/new$/, "New study", async () => (await import("./create.js")).NewStudy],
  [/^\/devices$/, "Devices", async () => (await import("./devices.js")).Devices],
  [/^\/estimate$/, "Estimate", async () => (await import("./estimate.js")).EstimatePage],
  [/^\/login$/, "Log in", async () => (await import("./login.js")).Login],
];

const LINKS = [
  ["/", "Studies"],
  ["/devices", "Devices"],
  ["/estimate", "Estimate"],
];

function useAddress() {
  const [address, setAddress] = useState(location.pathname + location.search);
  useEffect(() => {
    const look = () => setAddress(location.pathname + location.search);
    addEventListener("popstate", look);
    return () => removeEventListener("popstate", look);
  }, []);
  return address;
}

/** Links within the dashboard change the page without loading it anew. @param {MouseEvent} event */
function follow(event) {
  const link = /** @type {HTMLElement} */ (event.target).closest?.("a");
  const isPlain = event.button === 0 && !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
  if (!link || !isPlain || link.target || link.hasAttribute("download")) return;
  const to = new URL(link.href);
  if (to.origin !== location.origin || !PAGES.some(([form]) => form.test(to.pathname))) return;
  if (to.hash && to.pathname === location.pathname) return;
  event.preventDefault();
  go(to.pathname + to.search);
  scrollTo(0, 0);
}

function App() {
  const address = useAddress();
  const [Page, setPage] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [caller, setCaller] = useState(/** @type {any} */ (null));
  const path = address.split("?")[0];
  const match = PAGES.find(([form]) => form.test(path));

  useEffect(() => {
    access.ask = () => {
      setCaller(null);
      if (location.pathname !== "/login") go(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    };
    addEventListener("click", follow);
    return () => removeEventListener("click", follow);
  }, []);
  useEffect(() => {
    if (path !== "/login" && !caller) askIfThere("/v1/session").then(setCaller, () => {});
  }, [path]);
  useEffect(() => {
    let isCurrent = true;
    setError(null);
    document.title = `${match ? match[1] : "Not found"} – rankwise`;
    const load = match ? match[2]([]) : Promise.resolve(Nowhere);
    load.then(
      (found) => isCurrent && setPage({ path, View: found }),
      (failure) => isCurrent && setError(failure),
    );
    return () => void (isCurrent = false);
  }, [path]);

  const id = match?.[0].exec(path)?.[1];
  const leave = async () => {
    await ask("/v1/session", { method: "DELETE" }).catch(() => {});
    access.ask();
  };
  return html`
    <a class="skip" href="#main">Skip to content</a>
    <header class="top">
      <a class="brand" href="/">rankwise</a>
      ${path !== "/login" &&
      html`<nav aria-label="Pages">
        ${LINKS.map(
          ([to, name]) => html`<a href=${to} aria-current=${to === path ? "page" : null}>${name}</a>`,
        )}
      </nav>`}
      <div class="tools">
        ${caller?.token_required && html`<span class="muted">${caller.name}, ${caller.role}</span>
          <button type="button" class="small" onClick=${leave}>Log out</button>`}
        <${Theme} />
      </div>
    </header>
    <main id="main" key=${path}>
      ${error
        ? html`<${Failure} error=${error} again=${() => location.reload()} />`
        : Page?.path === path
          ? html`<${Page.View} id=${id} caller=${caller} onCaller=${setCaller} />`
          : null}
    </main>
  `;
}

function Nowhere() {
  return html`<${Heading}>Not found<//><${Empty} title="There is no such page"><p><a href="/">All studies</a></p><//>`;
}

/** Light, dark, or as the system has it; kept in this browser. */
function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("theme") || "system");
  useEffect(() => {
    if (theme === "system") {
      delete document.documentElement.dataset.theme;
      localStorage.removeItem("theme");
    } else {
      document.documentElement.dataset.theme = theme;
      localStorage.setItem("theme", theme);
    }
    dispatchEvent(new Event("themechange"));
  }, [theme]);
  return html`<label class="theme"
    ><span class="hidden">Colours</span>
    <select onChange=${(/** @type {any} */ event) => setTheme(event.currentTarget.value)}>
      ${["system", "light", "dark"].map((each) => html`<option value=${each} selected=${each === theme}>${each}</option>`)}
    </select></label
  >`;
}

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.textContent = "";
render(html`<${App} />`, root);
