package dev.countersign.client.support;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.GeneralSecurityException;
import java.security.KeyStore;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;

/** A certificate authority, which writes its files into a folder by the keytool of the JDK. */
public final class Certificates {
  private static final String PASSWORD = "changeit";

  private final Path folder;
  private final Path store;

  /** Creates an authority in this folder: {@code ca.pem}. */
  public Certificates(Path folder) throws IOException, InterruptedException {
    this.folder = folder;
    store = folder.resolve("store.p12");
    keytool(
        "-genkeypair", "-alias", "ca", "-dname", "CN=authority", "-keyalg", "EC", "-ext", "bc:c");
    export("ca");
  }

  /** Issues a certificate with these names: NAME.pem and NAME.key. */
  public void issue(String name, String alternativeNames)
      throws IOException, InterruptedException, GeneralSecurityException {
    keytool("-genkeypair", "-alias", name, "-dname", "CN=" + name, "-keyalg", "EC");
    Path request = folder.resolve(name + ".csr");
    keytool("-certreq", "-alias", name, "-file", request.toString());
    keytool(
        "-gencert",
        "-alias",
        "ca",
        "-infile",
        request.toString(),
        "-outfile",
        path(name + ".pem").toString(),
        "-ext",
        "san=" + alternativeNames,
        "-rfc");
    KeyStore keys = KeyStore.getInstance(store.toFile(), PASSWORD.toCharArray());
    byte[] key = keys.getKey(name, PASSWORD.toCharArray()).getEncoded();
    String encoded = Base64.getMimeEncoder(64, new byte[] {'\n'}).encodeToString(key);
    Files.writeString(
        path(name + ".key"),
        "-----BEGIN PRIVATE KEY-----\n" + encoded + "\n-----END PRIVATE KEY-----\n");
    Files.setPosixFilePermissions(
        path(name + ".key"), PosixFilePermissions.fromString("rw-------"));
  }

  public Path path(String name) {
    return folder.resolve(name);
  }

  public byte[] read(String name) throws IOException {
    return Files.readAllBytes(path(name));
  }

  private void export(String name) throws IOException, InterruptedException {
    keytool("-exportcert", "-alias", name, "-rfc", "-file", path(name + ".pem").toString());
  }

  private void keytool(String... arguments) throws IOException, InterruptedException {
    Path program = Path.of(System.getProperty("java.home"), "bin", "keytool");
    List<String> words = new ArrayList<>(List.of(program.toString()));
    words.addAll(List.of(arguments));
    words.addAll(
        List.of("-keystore", store.toString(), "-storepass", PASSWORD, "-storetype", "PKCS12"));
    Process run = new ProcessBuilder(words).redirectErrorStream(true).start();
    String output = new String(run.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    if (run.waitFor() != 0) {
      throw new AssertionError(output);
    }
  }
}
