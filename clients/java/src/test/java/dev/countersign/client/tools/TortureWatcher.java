package dev.countersign.client.tools;

import dev.countersign.client.Answer;
import dev.countersign.client.Client;
import dev.countersign.client.ClientBuilder;
import dev.countersign.client.Demands;
import dev.countersign.client.InactiveReason;
import dev.countersign.client.Verifier;
import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.nio.charset.StandardCharsets;
import java.util.List;

/**
 * Verifies access tokens for the torture test of the service, by the library in local mode, which
 * never asks the service.
 *
 * <p>Its arguments are the addresses of replicas, of which it watches one. {@code
 * tests/torture/watcher/watcher.py} describes the lines that it reads and writes. Besides, a line
 * {@code clock AHEAD LOST} sets its clocks: from then on the wall clock is ahead by the first
 * number of nanoseconds, and both clocks are behind by the second. Times are those of {@link
 * System#nanoTime()}, which is CLOCK_MONOTONIC on Linux.
 */
public final class TortureWatcher {
  private final Verifier verifier;
  private final MovedClock clock;

  private TortureWatcher(Verifier verifier, MovedClock clock) {
    this.verifier = verifier;
    this.clock = clock;
  }

  public static void main(String[] addresses) throws IOException {
    ClientBuilder builder = Client.builder("http://" + addresses[0]);
    for (String address : List.of(addresses).subList(1, addresses.length)) {
      builder.endpoint("http://" + address);
    }
    MovedClock clock = new MovedClock();
    try (Client client = builder.build();
        Verifier verifier =
            Verifier.local(client).clock(clock).onLapse(Verifier.OnLapse.REFUSE).start()) {
      BufferedReader questions =
          new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
      BufferedWriter answers =
          new BufferedWriter(new OutputStreamWriter(System.out, StandardCharsets.UTF_8));
      new TortureWatcher(verifier, clock).serve(questions, answers);
    }
  }

  /**
   * Answers until the input ends. The answers to lines that have arrived together are written
   * together.
   */
  private void serve(BufferedReader questions, BufferedWriter answers) throws IOException {
    for (String line = questions.readLine(); line != null; line = questions.readLine()) {
      String[] words = line.split(" ", -1);
      if (words.length == 3 && words[0].equals("clock")) {
        long ahead = Long.parseLong(words[1]);
        long lost = Long.parseLong(words[2]);
        clock.set((ahead - lost) / 1_000, -lost);
      } else if (words.length == 2) {
        answers.write(check(words[0], words[1]));
        answers.newLine();
      } else {
        throw new IOException("a line is neither a number and a token, nor a clock");
      }
      if (!questions.ready()) {
        answers.flush();
      }
    }
    answers.flush();
  }

  private String check(String number, String token) {
    long begin = System.nanoTime();
    Answer answer = verifier.verifyLocally(token, Demands.none());
    long end = System.nanoTime();
    String word =
        answer.isActive()
            ? "active"
            : answer
                .inactiveReason()
                .map(InactiveReason::name)
                .map("inactive "::concat)
                .orElse("unknown NO_LEASE");
    return String.join(
        " ",
        number,
        "1",
        String.valueOf(begin),
        String.valueOf(end),
        String.valueOf(begin),
        String.valueOf(end),
        word);
  }
}
