// Verifies an access token with the published keys, as a resource server in JavaScript would.
// Usage: verify.mjs ISSUER AUDIENCE TOKEN
import { createRemoteJWKSet, jwtVerify } from 'jose'

const [issuer, audience, token] = process.argv.slice(2)
const metadata = await (await fetch(`${issuer}/.well-known/oauth-authorization-server`)).json()
if (metadata.issuer !== issuer) throw new Error('the metadata belong to another issuer')
const keys = createRemoteJWKSet(new URL(metadata.jwks_uri))
const expected = { issuer, audience, typ: 'at+jwt', algorithms: ['EdDSA', 'ES256', 'RS256'] }

const { payload, protectedHeader } = await jwtVerify(token, keys, expected)
console.log(protectedHeader.alg, payload.sub)
const [head, body, signature] = token.split('.')
const forged = [head, body, (signature[0] === 'A' ? 'B' : 'A') + signature.slice(1)].join('.')
for (const [wrong, changes] of [[forged, {}], [token, { audience: 'other' }], [token, { issuer: 'https://other' }]]) {
  const accepted = await jwtVerify(wrong, keys, { ...expected, ...changes }).then(() => true, () => false)
  if (accepted) throw new Error('the library accepted a token that it must refuse')
}
