// A shop that is protected by Countersign.
//
// Its routes show what a route can demand: nothing, any session, a scope, or a recent
// authentication with a second factor.
//
// Usage: node shop.js, with these variables in the environment:
// - COUNTERSIGN_ENDPOINTS: the URLs of the replicas, separated by commas
// - COUNTERSIGN_API_KEY: the key of a caller with the role `validator`, if the service has callers
// - LISTEN: the address to listen on, 127.0.0.1:3000 by default
import { Client, Verifier } from "countersign-client";
import { findSession, protect, sessionOf } from "countersign-client/fastify";
import fastify from "fastify";

/** The audience that tokens for this service have. */
const AUDIENCE = "https://shop.example";

const {
  COUNTERSIGN_ENDPOINTS,
  COUNTERSIGN_API_KEY,
  LISTEN = "127.0.0.1:3000",
} = process.env;
if (COUNTERSIGN_ENDPOINTS === undefined) {
  throw new Error("COUNTERSIGN_ENDPOINTS must have the URLs of the replicas");
}
const client = new Client({
  endpoints: COUNTERSIGN_ENDPOINTS.split(","),
  apiKey: COUNTERSIGN_API_KEY,
});
const verifier = Verifier.local(client, { onLapse: "refuse" });

const app = fastify();
/** Makes the options of a route with these demands. */
const demanding = (demands, further = {}) => ({
  onRequest: protect(
    verifier,
    { audience: AUDIENCE, ...demands },
    { cookie: "access_token", realm: AUDIENCE, ...further },
  ),
});

// Anybody may call this, and a session makes a difference.
app.get("/", demanding({}, { optional: true }), (request) => {
  const session = findSession(request);
  return session === undefined ? "welcome" : `welcome back, ${session.subject}`;
});

// This needs any session.
app.get("/me", demanding({}), (request) => {
  const session = sessionOf(request);
  const { id, subject, scopes } = session;
  return { session: id, subject, scopes, plan: session.claim("plan") };
});

// This needs the scope orders:write.
app.post("/orders", demanding({ scopes: ["orders:write"] }), (request) => {
  return `ordered by ${sessionOf(request).subject}`;
});

// This needs an authentication of class gold within the last five minutes. A client that gets the
// challenge `insufficient_user_authentication` sends its user to sign in again (RFC 9470).
const recentGold = { acrValues: ["gold"], maxAuthenticationAgeSeconds: 300 };
app.post("/payments", demanding(recentGold), (request) => {
  return `paid by ${sessionOf(request).subject}`;
});

app.addHook("onClose", () => {
  verifier.close();
  client.close();
});
process.on("SIGTERM", () => void app.close());

// The shop also starts without the authority, and then answers 503 until it is there.
await verifier.ready(AbortSignal.timeout(5000)).catch(() => undefined);

const [, host, port] = /^(.*):(\d+)$/.exec(LISTEN) ?? [];
const address = await app.listen({ host, port: Number(port) });
console.log(`the shop listens on ${address}`);
