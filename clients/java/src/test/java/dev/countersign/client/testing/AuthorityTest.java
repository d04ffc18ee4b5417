package dev.countersign.client.testing;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.countersign.client.Answer;
import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import dev.countersign.client.Session;
import java.time.Duration;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Tests of the authority for tests. */
final class AuthorityTest {
  @Test
  void tokensExpireAreRevokedAndCannotBeCheckedWhileTheAuthorityIsUnavailable() {
    Authority authority = new Authority();
    String token =
        authority.token("alice").tenant("acme").clientId("web").claim("plan", "gold").issue();
    String other =
        authority.token("bob").factor("hwk").authenticatedAgo(Duration.ofHours(1)).issue();
    Session session = check(authority, token).activeSession().orElseThrow();
    assertEquals("alice", session.subject());
    assertEquals("acme", session.tenant());
    assertEquals("web", session.clientId());
    assertEquals(List.of(Authority.AUDIENCE), session.audience());
    assertEquals("gold", session.claim("plan").orElseThrow());
    Demands recent = Demands.none().withRecentFactor("hwk", Duration.ofMinutes(59));
    assertEquals(
        InactiveReason.STEP_UP_REQUIRED,
        authority.verifier().verify(other, recent).inactiveReason().orElseThrow());
    authority.revoke(token);
    assertEquals(InactiveReason.REVOKED, check(authority, token).inactiveReason().orElseThrow());
    authority.setUnavailable(true);
    assertInstanceOf(Answer.Unknown.class, check(authority, other));
    authority.setUnavailable(false);
    assertTrue(check(authority, other).isActive());
    String brief = authority.token("alice").lifetime(Duration.ofSeconds(5)).issue();
    authority.advance(Duration.ofSeconds(5));
    assertEquals(InactiveReason.EXPIRED, check(authority, brief).inactiveReason().orElseThrow());
    authority.advance(Duration.ofMinutes(15));
    assertEquals(InactiveReason.EXPIRED, check(authority, other).inactiveReason().orElseThrow());
    // Each authority has a key of its own.
    Authority another = new Authority();
    assertEquals(
        InactiveReason.BAD_SIGNATURE, check(another, other).inactiveReason().orElseThrow());
    assertThrows(IllegalArgumentException.class, () -> another.revoke(other));
  }

  private static Answer check(Authority authority, String token) {
    return authority.verifier().verifyLocally(token, Demands.none());
  }
}
