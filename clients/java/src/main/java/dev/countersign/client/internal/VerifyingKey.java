package dev.countersign.client.internal;

import com.nimbusds.jose.JOSEException;
import com.nimbusds.jose.JWSAlgorithm;
import com.nimbusds.jose.JWSHeader;
import com.nimbusds.jose.JWSVerifier;
import com.nimbusds.jose.crypto.ECDSAVerifier;
import com.nimbusds.jose.crypto.RSASSAVerifier;
import com.nimbusds.jose.jwk.Curve;
import com.nimbusds.jose.jwk.ECKey;
import com.nimbusds.jose.jwk.RSAKey;
import com.nimbusds.jose.util.Base64URL;
import java.math.BigInteger;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.PublicKey;
import java.security.Signature;
import java.security.interfaces.RSAPublicKey;
import java.security.spec.EdECPoint;
import java.security.spec.EdECPublicKeySpec;
import java.security.spec.NamedParameterSpec;
import java.util.Map;

/** A key that verifies access tokens by one algorithm only. */
final class VerifyingKey {
  private static final int MIN_RSA_BITS = 2048;
  private static final int MAX_RSA_BITS = 8192;
  private static final int COORDINATE_BYTES = 32;
  private static final int SIGNATURE_BYTES = 64;

  /** Checks a signature. */
  @FunctionalInterface
  private interface Check {
    boolean verifies(byte[] message, byte[] signature)
        throws GeneralSecurityException, JOSEException;
  }

  private final String algorithm;

  /** The numbers of the key, by which two keys are compared. */
  private final String material;

  private final Check check;

  private VerifyingKey(String algorithm, String material, Check check) {
    this.algorithm = algorithm;
    this.material = material;
    this.check = check;
  }

  /** Returns the only algorithm. */
  String algorithm() {
    return algorithm;
  }

  boolean isSame(VerifyingKey other) {
    return algorithm.equals(other.algorithm) && material.equals(other.material);
  }

  boolean verifies(byte[] message, byte[] signature) {
    try {
      return check.verifies(message, signature);
    } catch (GeneralSecurityException | JOSEException e) {
      // For instance, the signature has the wrong size.
      return false;
    }
  }

  /** Reads the members of a JWK; null if this library cannot use the key. */
  static VerifyingKey read(Map<?, ?> jwk) {
    try {
      return switch (text(jwk, "alg") + " " + text(jwk, "kty") + " " + text(jwk, "crv")) {
        case "EdDSA OKP Ed25519" -> edwards(text(jwk, "x"));
        case "ES256 EC P-256" -> elliptic(text(jwk, "x"), text(jwk, "y"));
        case "RS256 RSA " -> rsa(text(jwk, "n"), text(jwk, "e"));
        default -> null;
      };
    } catch (GeneralSecurityException
        | JOSEException
        | IllegalArgumentException
        | IllegalStateException e) {
      // For instance, the point is not on the curve.
      return null;
    }
  }

  private static String text(Map<?, ?> jwk, String name) {
    return jwk.get(name) instanceof String text ? text : "";
  }

  /** Uses the JDK (RFC 8032), because the verifier of Nimbus needs another library. */
  private static VerifyingKey edwards(String x) throws GeneralSecurityException {
    byte[] point = Base64Url.decode(x);
    if (point == null || point.length != COORDINATE_BYTES) {
      return null;
    }
    boolean isOdd = (point[COORDINATE_BYTES - 1] & 0x80) != 0;
    byte[] big = new byte[COORDINATE_BYTES];
    for (int index = 0; index < COORDINATE_BYTES; index++) {
      big[index] = point[COORDINATE_BYTES - 1 - index];
    }
    big[0] &= 0x7f;
    EdECPoint read = new EdECPoint(isOdd, new BigInteger(1, big));
    PublicKey key =
        KeyFactory.getInstance("Ed25519")
            .generatePublic(new EdECPublicKeySpec(NamedParameterSpec.ED25519, read));
    return new VerifyingKey(
        "EdDSA",
        x,
        (message, signature) -> {
          if (signature.length != SIGNATURE_BYTES) {
            return false;
          }
          Signature verifier = Signature.getInstance("Ed25519");
          verifier.initVerify(key);
          verifier.update(message);
          return verifier.verify(signature);
        });
  }

  private static VerifyingKey elliptic(String x, String y) throws JOSEException {
    byte[] first = Base64Url.decode(x);
    byte[] second = Base64Url.decode(y);
    boolean isPoint =
        first != null
            && second != null
            && first.length == COORDINATE_BYTES
            && second.length == COORDINATE_BYTES;
    if (!isPoint) {
      return null;
    }
    // This checks that the point is on the curve.
    ECKey key = new ECKey.Builder(Curve.P_256, new Base64URL(x), new Base64URL(y)).build();
    JWSVerifier verifier = new ECDSAVerifier(key.toECPublicKey());
    JWSHeader header = new JWSHeader(JWSAlgorithm.ES256);
    return new VerifyingKey(
        "ES256",
        x + "." + y,
        (message, signature) ->
            // RFC 7518, section 3.4.
            signature.length == SIGNATURE_BYTES
                && verifier.verify(header, message, Base64URL.encode(signature)));
  }

  private static VerifyingKey rsa(String n, String e) throws JOSEException {
    byte[] modulus = Base64Url.decode(n);
    byte[] exponent = Base64Url.decode(e);
    if (modulus == null || exponent == null || exponent.length > 4) {
      return null;
    }
    RSAPublicKey key =
        new RSAKey.Builder(new Base64URL(n), new Base64URL(e)).build().toRSAPublicKey();
    int bits = key.getModulus().bitLength();
    BigInteger number = key.getPublicExponent();
    boolean isUsable =
        bits >= MIN_RSA_BITS
            && bits <= MAX_RSA_BITS
            && number.testBit(0)
            && number.compareTo(BigInteger.TWO) > 0;
    if (!isUsable) {
      return null;
    }
    JWSVerifier verifier = new RSASSAVerifier(key);
    JWSHeader header = new JWSHeader(JWSAlgorithm.RS256);
    return new VerifyingKey(
        "RS256",
        n + "." + e,
        (message, signature) -> verifier.verify(header, message, Base64URL.encode(signature)));
  }

  @Override
  public String toString() {
    return "VerifyingKey[" + algorithm + "]";
  }
}
