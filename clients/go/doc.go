// Package countersign is the client of the Countersign session authority: typed calls to all
// services, and verification of access tokens.
//
// A [Client] calls the services, with deadlines, and with repetitions at another replica that are
// safe. A [Verifier] checks access tokens, in one of three modes:
//
//	NewRemoteVerifier     a check takes a round trip, and knows of all revocations
//	NewLocalVerifier      a check takes about a microsecond, and knows of all revocations
//	NewUnwatchedVerifier  a check takes about a microsecond, and knows of no revocation
//
// The packages httpauth and grpcauth are middleware. The package countersigntest is an authority
// within the process, for the tests of an application. The package telemetry has metrics and spans.
//
// No error, log or printed value of this package holds a token, an API key or a claim.
package countersign
