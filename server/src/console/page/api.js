// The server, and who asks it. The token is in this module's memory only: it goes with the page.

let token = null;
let name = null;

/** What the server refused, in its words. */
export class Refused extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }

  /** Whether another log-in would help. */
  get isForLogin() {
    return this.code === 16 || /user name is empty|invalid auth token/.test(this.message);
  }
}

const headers = () => (token ? { Authorization: token } : {});

async function refusal(response) {
  const text = await response.text();
  try {
    const answer = JSON.parse(text);
    const { message, error, code, grpc_code: grpc } = answer.error?.message ? answer.error : answer;
    return new Refused(message ?? error ?? text, code ?? grpc);
  } catch {
    return new Refused(text || `status ${response.status}`, undefined);
  }
}

async function fetched(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(), credentials: "omit", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("This member does not answer.", undefined);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The console's own data. */
export async function get(what, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  return (await fetched(`/console/api/${what}${query && "?"}${query}`, {})).json();
}

/** A call of the API. */
export async function call(path, message) {
  return (await fetched(`/v3/${path}`, { method: "POST", body: JSON.stringify(message) })).json();
}

/** A call with many answers; returns when they end. */
export async function stream(path, message, onAnswer, signal) {
  const response = await fetched(`/v3/${path}`, { method: "POST", body: JSON.stringify(message), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line.trim())) {
      const answer = JSON.parse(line);
      if (answer.error) throw new Refused(answer.error.message, answer.error.grpc_code);
      onAnswer(answer.result);
    }
  }
}

export const user = () => name;
export const isLoginNeeded = async () => Boolean((await call("auth/status", {})).enabled) && token === null;

export async function logIn(user, password) {
  token = null;
  const answer = await call("auth/authenticate", { name: user, password });
  [token, name] = [answer.token, user];
}

export function logOut() {
  [token, name] = [null, null];
}
