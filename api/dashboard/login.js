// Where one says who one is: a token begins a session, whose cookie no script can read.

import { html, useState } from "./vendor/htm-preact.js";
import { Problem, ask } from "./api.js";
import { Field, Heading, go } from "./ui.js";

/** @param {{onCaller: (caller: any) => void}} props */
export function Login({ onCaller }) {
  const [token, setToken] = useState("");
  const [error, setError] = useState("");
  const [isBusy, setBusy] = useState(false);
  const enter = async (/** @type {Event} */ event) => {
    event.preventDefault();
    setBusy(true);
    setError("");
    try {
      onCaller(await ask("/v1/session", { method: "POST", headers: { Authorization: `Bearer ${token.trim()}` } }));
      const next = new URLSearchParams(location.search).get("next") || "/";
      // Only an address of this server: what begins with two slashes is another one's.
      go(/^\/(?![/\\])/.test(next) ? next : "/");
    } catch (failure) {
      setError(failure instanceof Problem ? `${failure.message}${failure.nextStep ? `: ${failure.nextStep}` : ""}` : String(failure));
    } finally {
      setBusy(false);
    }
  };
  return html`<form class="card login" onSubmit=${enter}>
    <${Heading}>Log in<//>
    <p class="muted">This server asks for a token. Whoever runs it makes one with <code>rankwise tokens create</code>.</p>
    <${Field} legend="Token" name="token" type="password" value=${token} onInput=${setToken} error=${error} required />
    <p><button type="submit" class="primary" disabled=${isBusy || !token.trim()}>Log in</button></p>
  </form>`;
}
