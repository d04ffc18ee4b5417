package dev.countersign.client.support;

import dev.countersign.client.servlet.ProtectionFilter;
import jakarta.servlet.Filter;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import org.eclipse.jetty.ee10.servlet.FilterHolder;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.http.HttpTester;
import org.eclipse.jetty.server.LocalConnector;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.util.component.LifeCycle;

/**
 * An HTTP application that filters protect. It answers with the subject of the session, and has no
 * socket.
 */
public final class GuardedServer implements AutoCloseable {
  private final Server server = new Server();
  private final LocalConnector connector = new LocalConnector(server);

  /** An answer: its header fields are null if they are missing. */
  public record Reply(
      int status, String challenge, String retryAfter, String cacheControl, String body) {}

  /** The application, which says what it knows of the user. */
  private static final class Application extends HttpServlet {
    private static final long serialVersionUID = 1L;

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response)
        throws IOException {
      String subject =
          ProtectionFilter.session(request).map(session -> session.subject()).orElse("nobody");
      String user = request.getRemoteUser();
      boolean isSame =
          subject.equals(user == null ? "nobody" : user)
              && (user == null || request.getUserPrincipal().getName().equals(user));
      response.setCharacterEncoding("UTF-8");
      response.getWriter().write(isSame ? subject : "the principal differs");
    }
  }

  public GuardedServer(Filter... filters) throws Exception {
    server.addConnector(connector);
    ServletContextHandler context = new ServletContextHandler();
    for (Filter filter : filters) {
      context.addFilter(new FilterHolder(filter), "/*", null);
    }
    context.addServlet(new ServletHolder(new Application()), "/*");
    server.setHandler(context);
    server.start();
  }

  /** Sends a request with these header fields. */
  public Reply send(List<Map.Entry<String, String>> headers) throws Exception {
    StringBuilder request = new StringBuilder("GET / HTTP/1.1\r\nHost: test\r\n");
    for (Map.Entry<String, String> header : headers) {
      request.append(header.getKey()).append(": ").append(header.getValue()).append("\r\n");
    }
    request.append("Connection: close\r\n\r\n");
    java.nio.ByteBuffer answer =
        connector.getResponse(
            java.nio.ByteBuffer.wrap(request.toString().getBytes(StandardCharsets.UTF_8)));
    HttpTester.Response response = HttpTester.parseResponse(answer);
    return new Reply(
        response.getStatus(),
        response.get("WWW-Authenticate"),
        response.get("Retry-After"),
        response.get("Cache-Control"),
        response.getContent());
  }

  @Override
  public void close() {
    LifeCycle.stop(server);
  }
}
