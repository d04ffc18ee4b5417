package dev.countersign.client;

import static dev.countersign.client.Vectors.list;
import static dev.countersign.client.Vectors.number;
import static dev.countersign.client.Vectors.object;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.nimbusds.jose.util.JSONObjectUtils;
import dev.countersign.client.WatchMessages.EndException;
import dev.countersign.v1.WatchResponse;
import java.io.IOException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** Runs the vectors that all client libraries share ({@code clients/vectors}). */
final class VectorsTest {
  @Test
  void theVectorsOfTokensHold() throws IOException {
    List<String> wrong = new ArrayList<>();
    for (String file : List.of("eddsa", "es256", "rs256", "demands")) {
      Map<String, Object> contents = Vectors.read("tokens-" + file + ".json");
      WatcherSite site = new WatcherSite(Instant.ofEpochSecond(number(contents.get("at"))));
      site.prepare(
          WatcherSite.rules(
              (String) contents.get("issuer"),
              number(contents.get("max_lifetime")),
              number(contents.get("leeway"))),
          JSONObjectUtils.toJSONString(object(contents.get("jwks"))));
      List<?> vectors = list(contents.get("vectors"));
      assertTrue(vectors.size() > 30, file);
      for (Object each : vectors) {
        Map<String, Object> vector = object(each);
        String problem = Vectors.check(site.verifier, (String) vector.get("token"), vector);
        if (problem != null) {
          wrong.add(file + ", " + vector.get("name") + ": " + problem);
        }
      }
      site.client.close();
    }
    assertEquals("", String.join("\n", wrong));
  }

  @Test
  void theVectorsOfFeedsHold() throws IOException {
    List<String> wrong = new ArrayList<>();
    for (String file : List.of("rules", "recorded")) {
      for (Object each : list(Vectors.read("feeds-" + file + ".json").get("feeds"))) {
        Map<String, Object> feed = object(each);
        WatcherSite site = new WatcherSite(Instant.ofEpochMilli(number(feed.get("wall_ms"))));
        List<?> steps = list(feed.get("steps"));
        assertTrue(steps.size() > 2);
        for (int index = 0; index < steps.size(); index++) {
          Map<String, Object> step = object(steps.get(index));
          String problem = carryOut(site, object(feed.get("tokens")), step);
          if (problem != null) {
            wrong.add(feed.get("name") + ", step " + index + " " + step + ": " + problem);
          }
        }
        site.client.close();
      }
    }
    assertEquals("", String.join("\n", wrong));
  }

  private static ByteString bytes(Object value) {
    return ByteString.copyFrom(Base64.getDecoder().decode((String) value));
  }

  private static String differs(ByteString is, Object expected) {
    return is.equals(bytes(expected)) ? null : "it is " + is;
  }

  /** Carries out a step. Returns a sentence if it does not lead to what it should. */
  private static String carryOut(
      WatcherSite site, Map<String, Object> tokens, Map<String, Object> step)
      throws InvalidProtocolBufferException {
    switch ((String) step.get("step")) {
      case "open" -> {
        return differs(site.open(), step.get("cursor"));
      }
      case "receive", "refuse" -> {
        boolean isRefused = step.get("step").equals("refuse");
        try {
          site.receive(WatchResponse.parseFrom(bytes(step.get("message"))));
          return isRefused ? "it was not refused" : null;
        } catch (EndException e) {
          return isRefused ? null : e.getMessage();
        }
      }
      case "renew" -> {
        return differs(site.renew(), step.get("applied"));
      }
      case "advance" -> {
        Instant target = site.clock.now().plusMillis(number(step.get("wall_ms")));
        site.clock.advance(Duration.ofMillis(number(step.get("uptime_ms"))));
        site.clock.jumpTo(target);
        return null;
      }
      case "check" -> {
        return Vectors.check(site.verifier, (String) tokens.get((String) step.get("token")), step);
      }
      default -> throw new AssertionError("there is a step of an unknown kind: " + step);
    }
  }
}
