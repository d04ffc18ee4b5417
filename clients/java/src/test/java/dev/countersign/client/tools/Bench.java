package dev.countersign.client.tools;

import com.nimbusds.jose.JOSEObjectType;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSHeader;
import com.nimbusds.jose.JWSSigner;
import com.nimbusds.jose.JWSVerifier;
import com.nimbusds.jose.crypto.ECDSASigner;
import com.nimbusds.jose.crypto.ECDSAVerifier;
import com.nimbusds.jose.crypto.RSASSASigner;
import com.nimbusds.jose.crypto.RSASSAVerifier;
import com.nimbusds.jose.jwk.Curve;
import com.nimbusds.jose.jwk.ECKey;
import com.nimbusds.jose.jwk.JWK;
import com.nimbusds.jose.jwk.RSAKey;
import com.nimbusds.jose.jwk.gen.ECKeyGenerator;
import com.nimbusds.jose.jwk.gen.RSAKeyGenerator;
import com.nimbusds.jwt.JWTClaimsSet;
import com.nimbusds.jwt.SignedJWT;
import com.nimbusds.jwt.proc.DefaultJWTClaimsVerifier;
import dev.countersign.client.Demands;
import dev.countersign.client.TimeSource;
import dev.countersign.client.Verifier;
import dev.countersign.client.internal.Ids;
import dev.countersign.client.internal.KeySet;
import dev.countersign.client.internal.Lease;
import dev.countersign.client.internal.Local;
import dev.countersign.client.internal.Rules;
import dev.countersign.client.testing.Authority;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Date;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.UUID;

/**
 * Measures a check of a token by a local verifier, of one that was seen before and of a new one,
 * against the verification of the same tokens by Nimbus, which knows of no revocation. The
 * measurements take turns, and the best round of each counts, because other processes can only make
 * a round slower.
 */
public final class Bench {
  private static final int ROUNDS = 40;
  private static final int TOKENS = 400;

  private Bench() {}

  /** A check that throws if a token is not good. */
  private interface Check {
    void accept(String token) throws Exception;
  }

  public static void main(String[] arguments) throws Exception {
    System.out.println("algorithm   seen before         new      Nimbus   seen/Nimbus  new/Nimbus");
    ECKey elliptic =
        new ECKeyGenerator(Curve.P_256).keyID("key").algorithm(JWSAlgorithm.ES256).generate();
    measure(JWSAlgorithm.ES256, new ECDSASigner(elliptic), new ECDSAVerifier(elliptic), elliptic);
    RSAKey rsa = new RSAKeyGenerator(2048).keyID("key").algorithm(JWSAlgorithm.RS256).generate();
    measure(JWSAlgorithm.RS256, new RSASSASigner(rsa), new RSASSAVerifier(rsa), rsa);
    measureEdwards();
  }

  private static String issue(JWSAlgorithm algorithm, JWSSigner signer) throws Exception {
    Instant now = Instant.now();
    JWSHeader header =
        new JWSHeader.Builder(algorithm).type(new JOSEObjectType("at+jwt")).keyID("key").build();
    JWTClaimsSet claims =
        new JWTClaimsSet.Builder()
            .issuer(Authority.ISSUER)
            .subject("alice")
            .audience(List.of(Authority.AUDIENCE))
            .claim("client_id", "web")
            .issueTime(Date.from(now))
            .expirationTime(Date.from(now.plusSeconds(900)))
            .jwtID(UUID.randomUUID().toString())
            .claim("sid", Ids.newSession(now.toEpochMilli() * 1_000).toString())
            .claim("auth_time", now.getEpochSecond())
            .claim("tenant", "acme")
            .claim("scope", "read write")
            .claim("plan", "gold")
            .build();
    SignedJWT token = new SignedJWT(header, claims);
    token.sign(signer);
    return token.serialize();
  }

  private static void measure(JWSAlgorithm algorithm, JWSSigner signer, JWSVerifier nimbus, JWK key)
      throws Exception {
    Local local = new Local(TimeSource.system(), 256 << 20);
    long second = 1_000_000;
    Rules rules =
        new Rules(Authority.ISSUER, 3600 * second, second, Set.of(), Set.of(), 3600 * second);
    String jwks = "{\"keys\":[" + key.toPublicJWK().toJSONString() + "]}";
    local.replace(KeySet.read(jwks, List.of()), rules, null, 0);
    // A lease as the service gives it costs more than one that does not end.
    local.take(Lease.Start.read(TimeSource.system()), 3_600_000_000_000L);
    Verifier verifier = Verifier.testing(local);
    Demands demands = Demands.none().withAudience(Authority.AUDIENCE).withScope("read");
    DefaultJWTClaimsVerifier<?> claimsVerifier =
        new DefaultJWTClaimsVerifier<>(
            Authority.AUDIENCE,
            new JWTClaimsSet.Builder().issuer(Authority.ISSUER).build(),
            Set.of("exp"));
    Check ours =
        token -> {
          if (!verifier.verifyLocally(token, demands).isActive()) {
            throw new AssertionError("a good token was refused");
          }
        };
    Check theirs =
        token -> {
          SignedJWT parsed = SignedJWT.parse(token);
          if (!parsed.verify(nimbus)) {
            throw new AssertionError("a good token was refused");
          }
          claimsVerifier.verify(parsed.getJWTClaimsSet(), null);
        };
    Map<String, Double> best = new TreeMap<>();
    for (int round = 0; round < ROUNDS; round++) {
      List<String> tokens = new ArrayList<>();
      for (int number = 0; number < TOKENS; number++) {
        tokens.add(issue(algorithm, signer));
      }
      time("nimbus", tokens, theirs, best);
      time("new", tokens, ours, best);
      for (int repetition = 0; repetition < 5; repetition++) {
        time("seen", tokens, ours, best);
      }
    }
    print(algorithm.getName(), best);
  }

  /**
   * Nimbus has no verifier for EdDSA without another library, so the signature alone is measured.
   */
  private static void measureEdwards() throws Exception {
    Authority authority = new Authority();
    Verifier verifier = authority.verifier();
    Demands demands = Demands.none().withAudience(Authority.AUDIENCE).withScope("read");
    Check ours =
        token -> {
          if (!verifier.verifyLocally(token, demands).isActive()) {
            throw new AssertionError("a good token was refused");
          }
        };
    java.security.KeyPair pair =
        java.security.KeyPairGenerator.getInstance("Ed25519").generateKeyPair();
    Map<String, Double> best = new TreeMap<>();
    for (int round = 0; round < ROUNDS; round++) {
      List<String> tokens = new ArrayList<>();
      Map<String, byte[]> signatures = new TreeMap<>();
      for (int number = 0; number < TOKENS / 4; number++) {
        String token = authority.token("alice").scope("read").issue();
        tokens.add(token);
        java.security.Signature signer = java.security.Signature.getInstance("Ed25519");
        signer.initSign(pair.getPrivate());
        signer.update(token.getBytes(java.nio.charset.StandardCharsets.UTF_8));
        signatures.put(token, signer.sign());
      }
      Check bare =
          token -> {
            java.security.Signature signature = java.security.Signature.getInstance("Ed25519");
            signature.initVerify(pair.getPublic());
            signature.update(token.getBytes(java.nio.charset.StandardCharsets.UTF_8));
            if (!signature.verify(signatures.get(token))) {
              throw new AssertionError("a good signature was refused");
            }
          };
      time("nimbus", tokens, bare, best);
      time("new", tokens, ours, best);
      for (int repetition = 0; repetition < 5; repetition++) {
        time("seen", tokens, ours, best);
      }
    }
    print("EdDSA, JDK", best);
  }

  private static void time(String name, List<String> tokens, Check check, Map<String, Double> best)
      throws Exception {
    long began = System.nanoTime();
    for (String token : tokens) {
      check.accept(token);
    }
    best.merge(name, (double) (System.nanoTime() - began) / tokens.size(), Math::min);
  }

  private static void print(String name, Map<String, Double> best) {
    double nimbus = best.get("nimbus");
    System.out.printf(
        "%-10s %9.0f ns %8.0f ns %8.0f ns %12s %11.2f%n",
        name,
        best.get("seen"),
        best.get("new"),
        nimbus,
        String.format("1/%.0f", nimbus / best.get("seen")),
        best.get("new") / nimbus);
  }
}
