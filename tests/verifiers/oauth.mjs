// Introspects and revokes a token as a resource server in JavaScript would.
// Usage: oauth.mjs ISSUER NAME KEY TOKEN
import * as oauth from 'oauth4webapi'

const [issuer, name, key, token] = process.argv.slice(2)
const options = { [oauth.allowInsecureRequests]: true }
const found = await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...options })
const server = await oauth.processDiscoveryResponse(new URL(issuer), found)
const client = { client_id: name }
const authentication = oauth.ClientSecretBasic(key)

async function introspect() {
  const answer = await oauth.introspectionRequest(server, client, authentication, token, options)
  return await oauth.processIntrospectionResponse(server, client, answer)
}

const before = await introspect()
const answer = await oauth.revocationRequest(server, client, authentication, token, options)
await oauth.processRevocationResponse(answer)
console.log(before.active, before.sub, JSON.stringify(await introspect()))
