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
import { findSession, protect, sessionOf } from "countersign-client/express";
import express from "express";

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

const app = express();
const options = { cookie: "access_token", realm: AUDIENCE };
const anybody = protect(
  verifier,
  { audience: AUDIENCE },
  { ...options, optional: true },
);
const signedIn = protect(verifier, { audience: AUDIENCE }, options);
const ordering = protect(
  verifier,
  { audience: AUDIENCE, scopes: ["orders:write"] },
  options,
);
const paying = protect(
  verifier,
  { audience: AUDIENCE, acrValues: ["gold"], maxAuthenticationAgeSeconds: 300 },
  options,
);

// Anybody may call this, and a session makes a difference.
app.get("/", anybody, (request, response) => {
  const session = findSession(request);
  response.send(
    session === undefined ? "welcome" : `welcome back, ${session.subject}`,
  );
});

// This needs any session.
app.get("/me", signedIn, (request, response) => {
  const session = sessionOf(request);
  const { id, subject, scopes } = session;
  response.json({ session: id, subject, scopes, plan: session.claim("plan") });
});

// This needs the scope orders:write.
app.post("/orders", ordering, (request, response) => {
  response.send(`ordered by ${sessionOf(request).subject}`);
});

// This needs an authentication of class gold within the last five minutes. A client that gets the
// challenge `insufficient_user_authentication` sends its user to sign in again (RFC 9470).
app.post("/payments", paying, (request, response) => {
  response.send(`paid by ${sessionOf(request).subject}`);
});

// The shop also starts without the authority, and then answers 503 until it is there.
await verifier.ready(AbortSignal.timeout(5000)).catch(() => undefined);

const [, host, port] = /^(.*):(\d+)$/.exec(LISTEN) ?? [];
const server = app.listen(Number(port), host, () => {
  const { address, port: bound } = server.address();
  console.log(`the shop listens on http://${address}:${bound}`);
});

process.on("SIGTERM", () => {
  server.close(() => {
    verifier.close();
    client.close();
  });
});
