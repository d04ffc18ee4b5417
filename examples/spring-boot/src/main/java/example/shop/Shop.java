package example.shop;

import dev.countersign.client.Client;
import dev.countersign.client.ClientBuilder;
import dev.countersign.client.Demands;
import dev.countersign.client.Session;
import dev.countersign.client.Verifier;
import dev.countersign.client.servlet.ProtectionFilter;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.web.servlet.FilterRegistrationBean;
import org.springframework.context.annotation.Bean;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RestController;

/**
 * A shop that is protected by Countersign. Its routes show what a route can demand: nothing, any
 * session, a scope, or a recent authentication of a certain class.
 *
 * <p>It has these variables in the environment: {@code COUNTERSIGN_ENDPOINTS}, the URLs of the
 * replicas, separated by commas; and {@code COUNTERSIGN_API_KEY}, the key of a caller with the role
 * {@code validator}, if the service has callers.
 */
@SpringBootApplication
@RestController
public class Shop {
  /** The audience that tokens for this service have. */
  static final String AUDIENCE = "https://shop.example";

  private static final Demands OURS = Demands.none().withAudience(AUDIENCE);

  public static void main(String[] arguments) {
    SpringApplication.run(Shop.class, arguments);
  }

  @Bean
  Client client(
      @Value("${COUNTERSIGN_ENDPOINTS}") List<String> endpoints,
      @Value("${COUNTERSIGN_API_KEY:}") String apiKey) {
    ClientBuilder builder = Client.builder(endpoints.get(0)).apiKey(apiKey);
    endpoints.stream().skip(1).forEach(builder::endpoint);
    return builder.build();
  }

  @Bean
  Verifier verifier(Client client) throws InterruptedException {
    Verifier verifier = Verifier.local(client).onLapse(Verifier.OnLapse.REFUSE).start();
    // The service also starts without the authority, and then answers 503 until it is there.
    verifier.awaitReady(Duration.ofSeconds(5));
    return verifier;
  }

  /** This is no bean, because Spring applies every bean that is a filter to all paths. */
  private static ProtectionFilter protection(Verifier verifier) {
    return new ProtectionFilter(verifier, OURS).withCookie("access_token").withRealm(AUDIENCE);
  }

  /** A public route: anybody may call it, and a session makes a difference. */
  @Bean
  FilterRegistrationBean<ProtectionFilter> greeting(Verifier verifier) {
    return protect(protection(verifier).optional(), "");
  }

  @Bean
  FilterRegistrationBean<ProtectionFilter> account(Verifier verifier) {
    return protect(protection(verifier), "/me");
  }

  @Bean
  FilterRegistrationBean<ProtectionFilter> orders(Verifier verifier) {
    return protect(protection(verifier).withDemands(OURS.withScope("orders:write")), "/orders");
  }

  /**
   * This route needs an authentication of class gold within the last five minutes. A client that
   * gets the challenge {@code insufficient_user_authentication} sends its user to sign in again
   * (RFC 9470).
   */
  @Bean
  FilterRegistrationBean<ProtectionFilter> payments(Verifier verifier) {
    Demands recent = OURS.withAcrValues("gold").withMaxAuthenticationAge(Duration.ofMinutes(5));
    return protect(protection(verifier).withDemands(recent), "/payments");
  }

  /** Protects these paths. */
  private static FilterRegistrationBean<ProtectionFilter> protect(
      ProtectionFilter filter, String pattern) {
    FilterRegistrationBean<ProtectionFilter> registration = new FilterRegistrationBean<>(filter);
    registration.addUrlPatterns(pattern);
    registration.setName("protection" + pattern);
    return registration;
  }

  @GetMapping("/")
  String greet(Session session) {
    return session == null ? "welcome" : "welcome back, " + session.subject();
  }

  @GetMapping("/me")
  Map<String, Object> show(Session session) {
    Map<String, Object> shown = new LinkedHashMap<>();
    shown.put("session", session.id());
    shown.put("subject", session.subject());
    shown.put("scopes", session.scopes());
    shown.put("plan", session.claim("plan").orElse(null));
    return shown;
  }

  @PostMapping("/orders")
  String order(Session session) {
    return "ordered by " + session.subject();
  }

  @PostMapping("/payments")
  String pay(Session session) {
    return "paid by " + session.subject();
  }
}
