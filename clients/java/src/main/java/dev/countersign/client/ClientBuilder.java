package dev.countersign.client;

import io.grpc.ChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.TlsChannelCredentials;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import io.grpc.netty.shaded.io.netty.channel.ChannelOption;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.URI;
import java.net.URISyntaxException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;

/** The settings of a {@link Client}. */
public final class ClientBuilder {
  private static final System.Logger LOGGER = System.getLogger("dev.countersign.client");

  /** The longest deadline. Metadata of gRPC cannot express an unlimited one. */
  private static final Duration LONGEST_DEADLINE = Duration.ofDays(1);

  /**
   * The size of the largest answer that is read. The service limits its answers itself ({@code
   * limits.max_answer_bytes}, 4 MiB by default).
   */
  private static final int MAX_ANSWER_BYTES = 64 << 20;

  private static final String BEGIN_CERTIFICATE = "-----BEGIN CERTIFICATE-----";

  private final List<String> endpoints = new ArrayList<>();
  private String apiKey;
  private final List<byte[]> authorities = new ArrayList<>();
  private byte[] certificate;
  private byte[] certificateKey;
  private String serverName;
  private Duration deadline = Duration.ofSeconds(1);
  private Duration revocationDeadline = Duration.ofSeconds(5);
  private Duration connectTimeout = Duration.ofMillis(500);
  private CallObserver observer;

  ClientBuilder(String endpoint) {
    endpoint(endpoint);
  }

  /**
   * Adds another replica. Calls go to the replicas in turn, and a call that one of them cannot
   * answer is repeated at another.
   *
   * @param endpoint the URL of the replica
   * @return these settings
   */
  public ClientBuilder endpoint(String endpoint) {
    endpoints.add(Objects.requireNonNull(endpoint, "endpoint"));
    return this;
  }

  /**
   * Sends this API key with each call. The key is a secret, so the endpoints should begin with
   * {@code https://}.
   *
   * @param key the key; null or empty for none
   * @return these settings
   */
  public ClientBuilder apiKey(String key) {
    apiKey = key == null || key.isEmpty() ? null : key;
    return this;
  }

  /**
   * Trusts only certificates of these authorities. Otherwise those that the Java runtime trusts are
   * trusted.
   *
   * @param pem the certificates in PEM
   * @return these settings
   */
  public ClientBuilder caCertificate(byte[] pem) {
    authorities.add(pem.clone());
    return this;
  }

  /**
   * Identifies as a caller by this client certificate.
   *
   * @param pem the certificate in PEM, with those between it and the authority
   * @param key the private key in PEM (PKCS #8)
   * @return these settings
   */
  public ClientBuilder clientCertificate(byte[] pem, byte[] key) {
    certificate = pem.clone();
    certificateKey = key.clone();
    return this;
  }

  /**
   * Expects this name in the certificate of the service, instead of the host of the endpoint.
   *
   * @param name the name
   * @return these settings
   */
  public ClientBuilder serverName(String name) {
    serverName = Objects.requireNonNull(name, "name");
    return this;
  }

  /**
   * Sets the longest time that a call may take, with its repetitions: 1 s by default, and at most a
   * day.
   *
   * @param deadline the time
   * @return these settings
   */
  public ClientBuilder deadline(Duration deadline) {
    this.deadline = limited(deadline);
    return this;
  }

  /**
   * Sets the longest time for calls whose purpose is a revocation: Revoke, RevokeKey,
   * Reauthenticate, UpdateSession and ImportSessions. It is 5 s by default, because such a call
   * waits for a replica or a watcher that has died, for up to 2.3 s.
   *
   * @param deadline the time
   * @return these settings
   */
  public ClientBuilder revocationDeadline(Duration deadline) {
    revocationDeadline = limited(deadline);
    return this;
  }

  /**
   * Sets the longest time that it may take to connect to a replica, before another one is tried:
   * 500 ms by default.
   *
   * @param timeout the time
   * @return these settings
   */
  public ClientBuilder connectTimeout(Duration timeout) {
    connectTimeout = limited(timeout);
    return this;
  }

  /**
   * Tells an observer of each call. {@link dev.countersign.client.telemetry.Telemetry} has one.
   *
   * @param observer the observer
   * @return these settings
   */
  public ClientBuilder observer(CallObserver observer) {
    this.observer = observer;
    return this;
  }

  static void requirePositive(Duration span) {
    if (span.isNegative() || span.isZero()) {
      throw new IllegalArgumentException("the time must be more than zero");
    }
  }

  private static Duration limited(Duration span) {
    requirePositive(span);
    return span.compareTo(LONGEST_DEADLINE) > 0 ? LONGEST_DEADLINE : span;
  }

  /**
   * Builds the client. It connects when it is first used.
   *
   * @return the client
   * @throws BuildException if the settings cannot be used
   */
  public Client build() {
    // Without this check, no connection would be trusted, for no visible reason.
    for (byte[] pem : authorities) {
      if (!new String(pem, StandardCharsets.ISO_8859_1).contains(BEGIN_CERTIFICATE)) {
        throw new BuildException(
            "the certificates of authorities hold no certificate in PEM (BEGIN CERTIFICATE)");
      }
    }
    String authorization = null;
    if (apiKey != null) {
      if (apiKey.chars().anyMatch(next -> next < ' ' || next > '~')) {
        throw new BuildException("the API key has characters that cannot be sent");
      }
      authorization = "Bearer " + apiKey;
    }
    List<Supplier<ManagedChannel>> connections = new ArrayList<>();
    for (String endpoint : endpoints) {
      connections.add(connection(endpoint));
    }
    List<Endpoints.Replica> replicas = new ArrayList<>();
    for (Supplier<ManagedChannel> connection : connections) {
      replicas.add(new Endpoints.Replica(connection));
    }
    return new Client(
        new Endpoints(replicas, System::nanoTime),
        new Client.Settings(authorization, deadline, revocationDeadline, observer));
  }

  private Supplier<ManagedChannel> connection(String endpoint) {
    URI url = url(endpoint);
    boolean isEncrypted = url.getScheme().toLowerCase(Locale.ROOT).equals("https");
    boolean hasCertificates = certificate != null || !authorities.isEmpty();
    if (hasCertificates && !isEncrypted) {
      throw new BuildException(
          endpoint + " is not encrypted, so the certificates would not be used: use https://");
    }
    if (apiKey != null && !isEncrypted && !isLocal(url.getHost())) {
      LOGGER.log(
          System.Logger.Level.WARNING,
          "the API key is sent to {0} without encryption: use https://",
          endpoint);
    }
    int port = url.getPort() >= 0 ? url.getPort() : isEncrypted ? 443 : 80;
    ChannelCredentials credentials = isEncrypted ? tls() : InsecureChannelCredentials.create();
    NettyChannelBuilder builder;
    try {
      builder = NettyChannelBuilder.forAddress(url.getHost(), port, credentials);
      if (serverName != null && isEncrypted) {
        builder.overrideAuthority(serverName);
      }
    } catch (IllegalArgumentException e) {
      throw new BuildException("the certificates cannot be used: " + e.getMessage(), e);
    }
    builder
        .userAgent("countersign-client-java/0.1.0")
        .maxInboundMessageSize(MAX_ANSWER_BYTES)
        .disableServiceConfigLookUp()
        .withOption(
            ChannelOption.CONNECT_TIMEOUT_MILLIS, (int) Math.max(connectTimeout.toMillis(), 1))
        // The service answers pings at any rate. A connection that has died unnoticed is replaced
        // within 15 s.
        .keepAliveTime(10, TimeUnit.SECONDS)
        .keepAliveTimeout(5, TimeUnit.SECONDS)
        .keepAliveWithoutCalls(true);
    return builder::build;
  }

  private static URI url(String endpoint) {
    try {
      URI url = new URI(endpoint);
      boolean isUrl =
          url.getScheme() != null
              && Set.of("http", "https").contains(url.getScheme().toLowerCase(Locale.ROOT))
              && url.getHost() != null;
      if (isUrl) {
        return url;
      }
    } catch (URISyntaxException e) {
      throw notUrl(endpoint, e);
    }
    throw notUrl(endpoint, null);
  }

  private static BuildException notUrl(String endpoint, Exception cause) {
    return new BuildException(
        '"' + endpoint + "\" is not the URL of an endpoint, such as https://sessions.example:50051",
        cause);
  }

  private static boolean isLocal(String host) {
    return Set.of("localhost", "127.0.0.1", "[::1]").contains(host);
  }

  private ChannelCredentials tls() {
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
    try {
      if (!authorities.isEmpty()) {
        ByteArrayOutputStream all = new ByteArrayOutputStream();
        for (byte[] pem : authorities) {
          all.write(pem);
          all.write('\n');
        }
        tls.trustManager(new ByteArrayInputStream(all.toByteArray()));
      }
      if (certificate != null) {
        tls.keyManager(
            new ByteArrayInputStream(certificate), new ByteArrayInputStream(certificateKey));
      }
    } catch (IOException | IllegalArgumentException e) {
      throw new BuildException("the certificates cannot be used: " + e.getMessage(), e);
    }
    return tls.build();
  }

  /** Does not print the API key. */
  @Override
  public String toString() {
    return "ClientBuilder[endpoints=" + endpoints + "]";
  }
}
