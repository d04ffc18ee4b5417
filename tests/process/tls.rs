//! Tests of TLS and callers as operators configure them: the checks at startup, certificates, and
//! changes while the service runs.

use std::{
    fs::{self, Permissions},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Deref,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::Arc,
};

use countersign::proto::{GetJwksRequest, key_service_client::KeyServiceClient};
use countersign_test_support::{
    certificates::Certificates,
    process::{Run, Server, countersign, run},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DnType, IsCa, KeyPair,
    SanType,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// A folder with certificates and the configuration of a service.
struct Site {
    folder: TempDir,
    certificates: Certificates,
}

impl Deref for Site {
    type Target = Certificates;

    fn deref(&self) -> &Certificates {
        &self.certificates
    }
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { certificates: Certificates::new(folder.path()), folder }
    }

    /// Writes a configuration with TLS. `tls` is added to its section `[tls]`, and `rest` follows.
    fn configure(&self, tls: &str, rest: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "data_dir = '{folder}/data'\nlisten = '0.0.0.0:0'\nhttp_listen = \
             '127.0.0.1:0'\n[tls]\ncertificate_file = '{folder}/server.pem'\nprivate_key_file = \
             '{folder}/server.key'\n{tls}\n{rest}"
        );
        let new = self.path("new.toml");
        fs::write(&new, text).unwrap();
        fs::rename(&new, self.path("countersign.toml")).unwrap();
    }

    fn serve(&self) -> Command {
        let mut command = countersign();
        command.args(["serve", "--config"]).arg(self.path("countersign.toml"));
        command.env_remove("COUNTERSIGN_HTTP_LISTEN");
        command
    }

    /// Runs a subcommand against a server, with these variables.
    fn cli(&self, server: &Server, args: &[&str], variables: &[(&str, &str)]) -> Run {
        let mut command = countersign();
        command
            .args(args)
            .env("COUNTERSIGN_SERVER", format!("https://localhost:{}", server.address().port()));
        run(command.env("COUNTERSIGN_CA_FILE", self.path("ca.pem")).envs(variables.iter().copied()))
    }

    /// Returns the variables by which the command line presents a certificate.
    fn showing(&self, name: &str) -> [(&'static str, String); 2] {
        let path = |end: &str| self.path(&format!("{name}.{end}")).display().to_string();
        [
            ("COUNTERSIGN_CLIENT_CERTIFICATE_FILE", path("pem")),
            ("COUNTERSIGN_CLIENT_KEY_FILE", path("key")),
        ]
    }

    async fn channel(&self, server: &Server) -> Channel {
        let ca = Certificate::from_pem(fs::read(self.path("ca.pem")).unwrap());
        let endpoint =
            Endpoint::from_shared(format!("https://localhost:{}", server.address().port()))
                .unwrap();
        endpoint
            .tls_config(ClientTlsConfig::new().ca_certificate(ca))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }
}

/// Makes a caller with `countersign caller new`. Returns its key, and its configuration.
fn new_caller(args: &[&str]) -> (String, String) {
    let made = run(countersign().args(["caller", "new"]).args(args)).ok();
    let key = made
        .lines()
        .find(|line| line.starts_with("cs_ck_"))
        .expect("the subcommand prints a key")
        .to_owned();
    let stanza =
        &made[made.find("[[callers]]").expect("the subcommand prints the configuration")..];
    (key, stanza.to_owned())
}

/// Returns the certificate that a port presents.
fn shown_certificate(site: &Site, address: SocketAddr, protocol: &[u8]) -> CertificateDer<'static> {
    let (mut connection, mut stream) = handshake(site, address, protocol);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).unwrap();
    }
    connection.peer_certificates().unwrap()[0].clone()
}

fn handshake(site: &Site, address: SocketAddr, protocol: &[u8]) -> (ClientConnection, TcpStream) {
    handshake_showing(site, address, protocol, None)
}

/// Prepares a TLS connection whose client presents this certificate, if any.
fn handshake_showing(
    site: &Site,
    address: SocketAddr,
    protocol: &[u8],
    certificate: Option<&str>,
) -> (ClientConnection, TcpStream) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(site.path("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain =
                vec![CertificateDer::from_pem_file(site.path(&format!("{name}.pem"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(site.path(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    (ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

#[test]
fn a_service_with_tls_serves_known_callers_according_to_their_roles() {
    let site = Site::new();
    let (key, stanza) = new_caller(&["login", "--role", "issuer", "--role", "viewer"]);
    site.configure("", &stanza);
    let server = Server::launch(&mut site.serve());
    let started = server.seen().iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let started = started.into_iter().find(|line| line["message"] == "starting").unwrap();
    assert_eq!((&started["tls"], &started["callers"]), (&true.into(), &1.into()));

    let create = ["session", "create", "alice", "--json"];
    let refused = site.cli(&server, &create[..3], &[]);
    assert!(refused.error(1).ends_with("(CALLER_UNKNOWN)"), "{refused:?}");
    site.cli(&server, &create, &[("COUNTERSIGN_API_KEY", &key)]).json();
    let file = site.path("api.key");
    fs::write(&file, format!("{key}\n")).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let session =
        site.cli(&server, &create, &[("COUNTERSIGN_API_KEY_FILE", file.to_str().unwrap())]).json();
    let id = session["session"]["session_id"].as_str().unwrap();
    let denied = site.cli(&server, &["session", "revoke", id], &[("COUNTERSIGN_API_KEY", &key)]);
    assert!(
        denied.error(1).contains("login") && denied.error(1).ends_with("(CALLER_NOT_ALLOWED)"),
        "{denied:?}"
    );
    assert_eq!(site.cli(&server, &["health"], &[]).ok(), "SERVING\n", "health is open");

    // A client that does not trust the certificate authority sends nothing.
    let unknown = site.cli(
        &server,
        &["health"],
        &[("COUNTERSIGN_CA_FILE", site.path("server.pem").to_str().unwrap())],
    );
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    let log = server.stop().join("\n");
    assert!(!log.contains(&key[6..]), "no key in the log");
}

#[test]
fn the_http_port_is_encrypted_too_and_its_metrics_have_the_expiry_of_the_certificate() {
    let site = Site::new();
    site.configure("", &new_caller(&["a", "--role", "admin"]).1);
    let server = Server::launch(&mut site.serve());
    let (mut connection, mut stream) = handshake(&site, server.http(), b"http/1.1");
    let mut encrypted = rustls::Stream::new(&mut connection, &mut stream);
    encrypted.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    // An error when the server closes the connection does not matter here.
    let _ = encrypted.read_to_string(&mut answer);
    assert!(
        answer.starts_with("HTTP/1.1 200")
            && answer.contains("countersign_certificate_expiry_timestamp_seconds")
    );

    for address in [server.http(), server.address()] {
        let mut plain = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
        plain.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut answer = vec![];
        let _ = plain.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"), "nothing is answered without TLS");
    }
    server.stop();

    site.configure("http = false", &new_caller(&["a", "--role", "admin"]).1);
    let server = Server::launch(&mut site.serve());
    let mut plain = TcpStream::connect(("127.0.0.1", server.http().port())).unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn probes_over_tls_are_answered_while_others_fill_the_port_and_its_reserve() {
    let site = Site::new();
    site.configure(
        "",
        &format!(
            "{}\n[limits]\nmax_http_connections = 1\nhandshake_timeout = '1m'",
            new_caller(&["a", "--role", "admin"]).1
        ),
    );
    let server = Server::launch(&mut site.serve());
    let connect = || TcpStream::connect(("127.0.0.1", server.http().port())).unwrap();
    let _silent: Vec<_> = (0..100).map(|_| connect()).collect();
    for (path, status) in
        [("/readyz", "200 OK"), ("/livez", "200 OK"), ("/metrics", "503 Service Unavailable")]
    {
        let (mut connection, mut stream) = handshake(&site, server.http(), b"http/1.1");
        let mut encrypted = rustls::Stream::new(&mut connection, &mut stream);
        encrypted.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        encrypted.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    server.stop();
}

#[test]
fn a_caller_is_known_by_a_name_in_its_certificate() {
    let site = Site::new();
    let callers = "[[callers]]\nname = 'gateway'\nroles = ['admin']\ncertificate_names = \
                   ['uri:spiffe://test/gateway', 'gateway.test']";
    let ca = format!("client_ca_file = '{}'", site.path("ca.pem").display());
    site.certificate("by-uri", &["spiffe://test/gateway"], |_| ());
    site.certificate("by-host", &["other.test", "gateway.test"], |_| ());
    site.certificate("unknown", &["gateway.test.example", "spiffe://test/gateway2"], |_| ());
    site.certificate("expired", &["gateway.test"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    site.certificate_of(&stranger, "foreign", &["gateway.test"], |_| ());

    for mode in ["optional", "required"] {
        site.configure(&format!("{ca}\nclient_certificates = '{mode}'"), callers);
        let server = Server::launch(&mut site.serve());
        let create = |certificate: &str| {
            let variables = site.showing(certificate);
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            site.cli(&server, &["session", "create", "alice"], &variables)
        };
        for known in ["by-uri", "by-host"] {
            create(known).ok();
        }
        assert!(create("unknown").error(1).ends_with("(CALLER_UNKNOWN)"), "{mode}");
        for bad in ["expired", "foreign"] {
            let refused = create(bad);
            assert!(
                refused.code == Some(1) && !refused.stderr.contains("CALLER_"),
                "{mode} {bad}: {refused:?}"
            );
        }
        let nameless = site.cli(&server, &["health"], &[]);
        assert_eq!(
            nameless.code,
            Some(if mode == "optional" { 0 } else { 1 }),
            "{mode}: {nameless:?}"
        );
    }
}

/// A name is a host, a URI or an e-mail address. Two names of different types are different, even
/// if their texts are equal.
#[test]
fn a_certificate_identifies_the_caller_configured_with_a_name_of_the_same_type() {
    let site = Site::new();
    let caller = |name: &str, names: &str| {
        format!(
            "[[callers]]\nname = '{name}'\nroles = ['validator']\ncertificate_names = [{names}]\n"
        )
    };
    let callers = [
        caller("untyped", "'Plain.test'"),
        caller("host", "'dns:gw.test', 'dns:127-0-0-1.test'"),
        caller("uri", "'uri:spiffe://gw.test/Gateway', 'uri:mailto:mail@gw.test'"),
        caller("email", "'email:Ops@gw.test'"),
    ];
    site.configure(
        &format!("client_ca_file = '{}'", site.path("ca.pem").display()),
        &callers.concat(),
    );
    let server = Server::launch(&mut site.serve());

    let text = |name: &str| rcgen::string::Ia5String::try_from(name).unwrap();
    let dns = |name: &str| SanType::DnsName(text(name));
    let uri = |name: &str| SanType::URI(text(name));
    let email = |name: &str| SanType::Rfc822Name(text(name));
    // Returns the extension for subject alternative names with this encoding (RFC 5280, section
    // 4.2.1.6).
    let encoded = |content: &[u8], is_critical: bool| {
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], content.to_vec());
        extension.set_criticality(is_critical);
        vec![extension]
    };
    let host = b"\x30\x09\x82\x07gw.test";
    let plain = |names: Vec<SanType>| (names, vec![]);
    let nobody = None;
    for (what, (names, extensions), known) in [
        ("a host", plain(vec![dns("gw.test")]), Some("host")),
        ("a host in capitals", plain(vec![dns("GW.Test")]), Some("host")),
        (
            "a host that is configured without a type",
            plain(vec![dns("plain.test")]),
            Some("untyped"),
        ),
        ("a host that is a URI", plain(vec![uri("gw.test")]), nobody),
        ("a host that is an e-mail address", plain(vec![email("gw.test")]), nobody),
        ("a host with its type", plain(vec![dns("dns:gw.test"), uri("dns:gw.test")]), nobody),
        ("a subdomain of the host", plain(vec![dns("a.gw.test")]), nobody),
        ("a host with a dot at the end", plain(vec![dns("gw.test.")]), nobody),
        ("wildcards", plain(vec![dns("*.test"), dns("*.gw.test"), dns("*")]), nobody),
        ("a host and NUL", plain(vec![dns("gw.test\0"), dns("gw.test\0.other.test")]), nobody),
        ("an IP address", plain(vec![SanType::IpAddress([127, 0, 0, 1].into())]), nobody),
        ("no name", plain(vec![]), nobody),
        ("a URI", plain(vec![uri("spiffe://gw.test/Gateway")]), Some("uri")),
        (
            "a URI among others",
            plain(vec![dns("other.test"), uri("spiffe://gw.test/Gateway")]),
            Some("uri"),
        ),
        ("a URI in another case", plain(vec![uri("spiffe://gw.test/gateway")]), nobody),
        ("a URI whose host is in capitals", plain(vec![uri("spiffe://GW.test/Gateway")]), nobody),
        ("a URI that is a host", plain(vec![dns("spiffe://gw.test/Gateway")]), nobody),
        ("a URI that is an e-mail address", plain(vec![email("spiffe://gw.test/Gateway")]), nobody),
        ("a URI with a longer path", plain(vec![uri("spiffe://gw.test/Gateway/x")]), nobody),
        ("an e-mail address", plain(vec![email("Ops@gw.test")]), Some("email")),
        (
            "an e-mail address, its host in capitals",
            plain(vec![email("Ops@GW.TEST")]),
            Some("email"),
        ),
        ("an e-mail address in another case", plain(vec![email("ops@gw.test")]), nobody),
        ("an e-mail address that is a host", plain(vec![dns("Ops@gw.test")]), nobody),
        (
            "an e-mail address that is a URI",
            plain(vec![uri("Ops@gw.test"), uri("mailto:Ops@gw.test")]),
            nobody,
        ),
        ("the e-mail address of a mailto URI", plain(vec![email("mail@gw.test")]), nobody),
        ("a host, encoded here", (vec![], encoded(host, false)), Some("host")),
        ("a host in a critical extension", (vec![], encoded(host, true)), Some("host")),
        ("a truncated extension", (vec![], encoded(&host[..8], false)), nobody),
        ("a truncated critical extension", (vec![], encoded(&host[..8], true)), nobody),
        (
            "an extension with a byte more",
            (vec![], encoded(&[&host[..], &[0]].concat(), false)),
            nobody,
        ),
        (
            "a host and a name that cannot be read",
            (vec![], encoded(b"\x30\x0c\x82\x07gw.test\x82\x01\xff", false)),
            nobody,
        ),
        ("the extension twice", (vec![dns("other.test")], encoded(host, false)), nobody),
    ] {
        site.certificate("client", &[], |params| {
            // The common name is ignored (RFC 9525, section 2).
            params.distinguished_name.push(DnType::CommonName, "gw.test");
            params.subject_alt_names = names;
            params.custom_extensions = extensions;
        });
        let variables = site.showing("client");
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // No caller here may create sessions, so the refusal names the caller as whom the service
        // has identified the client.
        let refused = site.cli(&server, &["session", "create", "alice"], &variables);
        match known {
            Some(name) => assert!(
                refused.error(1).contains(&format!("caller {name} ")),
                "{what}: {refused:?}"
            ),
            // The client refuses to present some certificates that it cannot parse. `net::tls`
            // tests how the service treats these certificates.
            None => assert!(
                ["(CALLER_UNKNOWN)", "invalid peer certificate"]
                    .iter()
                    .any(|says| refused.stderr.contains(says)),
                "{what}: {refused:?}"
            ),
        }
    }

    for (name, says) in [
        ("spiffe://gw.test/Gateway", "write \"uri:spiffe://gw.test/Gateway\""),
        ("Ops@gw.test", "write \"email:Ops@gw.test\""),
        ("DNS:gw.test", "write \"dns:gw.test\""),
        ("ip:127.0.0.1", "write dns:HOST, uri:URI or email:ADDRESS"),
        ("*.gw.test", "is not the whole name of one host"),
        ("uri:gw.test", "is not a URI"),
        ("dns:GW.test", "has a name twice, or one of another caller"),
    ] {
        let more = [&callers[..], &[caller("more", &format!("'{name}'"))]].concat();
        site.configure(
            &format!("client_ca_file = '{}'", site.path("ca.pem").display()),
            &more.concat(),
        );
        let refused = run(&mut site.serve());
        for text in ["setting callers[4].certificate_names (caller \"more\")", says] {
            assert!(refused.error(2).contains(text), "{name}: {text:?} is missing: {refused:?}");
        }
    }
}

#[test]
fn a_gateway_is_known_by_its_certificate_over_http_too_and_probes_need_none() {
    let site = Site::new();
    let callers = "[[callers]]\nname = 'gateway'\nroles = ['validator']\ncertificate_names = \
                   ['gateway.test']";
    let ca = format!("client_ca_file = '{}'", site.path("ca.pem").display());
    site.certificate("gateway", &["gateway.test"], |_| ());
    site.certificate("other", &["other.test"], |_| ());
    site.configure(&format!("{ca}\nclient_certificates = 'required'"), callers);
    let server = Server::launch(&mut site.serve());
    let ask = |certificate: Option<&str>, request: &str| {
        let (mut connection, mut stream) =
            handshake_showing(&site, server.http(), b"http/1.1", certificate);
        let mut encrypted = rustls::Stream::new(&mut connection, &mut stream);
        encrypted.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = encrypted.read_to_string(&mut answer);
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let form = "POST /oauth2/introspect HTTP/1.1\r\nhost: a\r\nconnection: \
                close\r\ncontent-length: 7\r\ncontent-type: \
                application/x-www-form-urlencoded\r\n\r\ntoken=x";
    for (certificate, forward_auth, introspect) in [
        (Some("gateway"), "401 Unauthorized", "200 OK"),
        (Some("other"), "403 Forbidden", "401 Unauthorized"),
        (None, "403 Forbidden", "401 Unauthorized"),
    ] {
        assert_eq!(
            ask(certificate, &get("/forward-auth")),
            format!("HTTP/1.1 {forward_auth}"),
            "{certificate:?}"
        );
        assert_eq!(ask(certificate, form), format!("HTTP/1.1 {introspect}"), "{certificate:?}");
        assert_eq!(ask(certificate, &get("/livez")), "HTTP/1.1 200 OK", "{certificate:?}");
    }
}

#[test]
fn forward_auth_without_tls_on_a_public_address_is_refused_unless_insecure_is_set() {
    let site = Site::new();
    let (key, stanza) = new_caller(&["gateway", "--role", "validator"]);
    for (accepted, status) in [("", "403"), ("insecure = true\n", "401")] {
        site.configure("http = false", &stanza);
        let file = site.path("countersign.toml");
        let text = fs::read_to_string(&file).unwrap();
        let open = text.replace("http_listen = '127.0.0.1:0'", "http_listen = '0.0.0.0:0'");
        fs::write(&file, format!("{accepted}{open}")).unwrap();
        let server = Server::launch(&mut site.serve());
        let ask = |path: &str| {
            let mut plain = TcpStream::connect(("127.0.0.1", server.http().port())).unwrap();
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: a\r\nx-countersign-key: {key}\r\nconnection: \
                 close\r\n\r\n"
            );
            plain.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            plain.read_to_string(&mut answer).unwrap();
            answer
        };
        let answer = ask("/forward-auth");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{accepted}: {answer}");
        assert_eq!(
            answer.contains("tls.http"),
            status == "403",
            "a refusal names the setting: {answer}"
        );
        assert!(ask("/livez").starts_with("HTTP/1.1 200"), "probes are open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_loaded_while_connections_stay_open_and_a_bad_one_is_not() {
    let site = Site::new();
    site.configure("", &new_caller(&["a", "--role", "admin"]).1);
    let mut server = Server::launch(&mut site.serve());
    let on_disk = || CertificateDer::from_pem_file(site.path("server.pem")).unwrap();
    let shown = |server: &Server| shown_certificate(&site, server.address(), b"h2");
    let first = on_disk();
    assert_eq!(shown(&server), first);
    let mut open = KeyServiceClient::new(site.channel(&server).await);
    open.get_jwks(GetJwksRequest {}).await.unwrap();

    // The signal makes the service load the new certificate.
    site.certificate("server", &["localhost"], |_| ());
    server.signal("HUP");
    server.line("the certificate has changed");
    assert_eq!(shown(&server), on_disk());
    assert_eq!(shown_certificate(&site, server.http(), b"http/1.1"), on_disk());
    open.get_jwks(GetJwksRequest {}).await.expect("connections stay open");

    // The service logs a bad certificate, and goes on with the previous one.
    let good = on_disk();
    fs::write(site.path("server.pem"), "no certificate").unwrap();
    server.signal("HUP");
    let line =
        wait_for_line(&mut server, "the certificate stays as it is: setting tls.certificate_file");
    assert!(line.contains("server.pem"), "{line}");
    assert_eq!(shown(&server), good);
    site.certificate("server", &["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    server.signal("HUP");
    wait_for_line(&mut server, "expired at 2020-01-01");
    assert_eq!(shown(&server), good);

    // The service also loads a new certificate without a signal.
    site.certificate("server", &["localhost"], |_| ());
    server.line("the certificate has changed");
    assert_eq!(shown(&server), on_disk());
    open.get_jwks(GetJwksRequest {}).await.expect("connections stay open");
}

/// Waits for a line that contains this text.
fn wait_for_line(server: &mut Server, what: &str) -> String {
    loop {
        let line = server.next_line();
        if line.contains(what) {
            return line;
        }
    }
}

#[test]
fn a_certificate_that_expires_soon_is_logged() {
    let site = Site::new();
    let soon = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 + 5400;
    site.certificate("server", &["localhost"], |params| {
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = time_at(soon);
    });
    site.configure("", &new_caller(&["a", "--role", "admin"]).1);
    let mut server = Server::launch(&mut site.serve());
    server.signal("HUP");
    assert_eq!(server.line("the certificate expires soon")["hours_left"], 1);
}

fn time_at(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_replaces_the_callers_but_never_opens_the_service_to_everybody() {
    let site = Site::new();
    let ((old, first), (new, second)) =
        (new_caller(&["old", "--role", "admin"]), new_caller(&["new", "--role", "admin"]));
    site.configure("", &first);
    let mut server = Server::launch(&mut site.serve());
    let channel = site.channel(&server).await;
    let list = async |key: &str| {
        let mut request = tonic::Request::new(countersign::proto::ListKeysRequest {});
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        KeyServiceClient::new(channel.clone())
            .list_keys(request)
            .await
            .map(|_| ())
            .map_err(|status| status.code())
    };
    assert_eq!((list(&old).await, list(&new).await), (Ok(()), Err(tonic::Code::Unauthenticated)));

    site.configure("", &second);
    server.signal("HUP");
    server.line("settings have changed");
    assert_eq!(server.line("audit")["action"], "configuration_reloaded");
    assert_eq!((list(&old).await, list(&new).await), (Err(tonic::Code::Unauthenticated), Ok(())));

    for (rest, message) in [
        (
            "",
            "settings stay as they are: setting listen: 0.0.0.0:0 can be reached from other \
             machines: configure callers",
        ),
        (
            "[[callers]]\nname = 'x'\nroles = ['boss']",
            "settings stay as they are: setting callers[0].roles",
        ),
        ("[[calers]]", "settings stay as they are: unknown setting calers"),
    ] {
        site.configure("", rest);
        server.signal("HUP");
        wait_for_line(&mut server, message);
        assert_eq!(
            (list(&old).await, list(&new).await),
            (Err(tonic::Code::Unauthenticated), Ok(())),
            "{rest}"
        );
    }
    fs::write(site.path("countersign.toml"), "").unwrap();
    server.signal("HUP");
    wait_for_line(&mut server, "only a restart opens the service");
    assert_eq!(list(&new).await, Ok(()));
    fs::remove_file(site.path("countersign.toml")).unwrap();
    server.signal("HUP");
    wait_for_line(&mut server, "settings stay as they are: configuration file");
    assert_eq!(list(&new).await, Ok(()));

    // The service also loads changed callers without a signal. For another changed setting it
    // reports that a restart is needed.
    site.configure("", &format!("{first}\n{second}\n[log]\nformat = 'json'"));
    server.line("settings have changed");
    let line = server.line("settings have changed that take effect after a restart: log.format");
    assert_eq!(line["level"], "WARN");
    assert_eq!((list(&old).await, list(&new).await), (Ok(()), Ok(())));
}

#[test]
fn a_bad_certificate_or_key_ends_the_start_with_one_line_that_names_the_setting() {
    let site = Site::new();
    let stanza = new_caller(&["a", "--role", "admin"]).1;
    let refused = |tls: &str, says: &[&str]| {
        site.configure(tls, &stanza);
        let run = run(&mut site.serve());
        for text in says {
            assert!(run.error(2).contains(text), "{text:?} is missing: {run:?}");
        }
    };
    let key = site.path("server.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    refused("", &["setting tls.private_key_file", "server.key", "mode 0644", "chmod 600"]);
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    let whole = fs::read(&key).unwrap();
    fs::write(&key, &whole[..whole.len() / 2]).unwrap();
    refused("", &["setting tls.private_key_file", "server.key", "no private key"]);
    fs::write(&key, "").unwrap();
    refused("", &["setting tls.private_key_file", "no private key"]);
    fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    refused("", &["setting tls.private_key_file", "does not go with the certificate"]);
    fs::remove_file(&key).unwrap();
    refused("", &["setting tls.private_key_file", "server.key", "No such file"]);
    site.certificate("server", &["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    refused("", &["setting tls.certificate_file", "expired at 2020-01-01", "renew it"]);
    site.certificate("server", &["localhost"], |_| ());
    refused("client_certificates = 'required'", &["setting tls.client_ca_file", "needed"]);
    refused(
        "client_ca_file = '/nowhere/ca.pem'",
        &["setting tls.client_ca_file", "/nowhere/ca.pem", "No such file"],
    );
    refused(
        &format!("client_ca_file = '{}'", site.path("server.key").display()),
        &["tls.client_ca_file", "no certificate"],
    );
    assert!(
        !site.path("data").exists() || fs::read_dir(site.path("data")).unwrap().count() == 0,
        "no file was created"
    );
}

#[test]
fn an_address_that_others_can_reach_needs_both_tls_and_callers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("countersign.toml");
    let refused = |text: &str| {
        fs::write(&file, text).unwrap();
        let command = &mut countersign();
        let run = run(command.args(["serve", "--listen", "0.0.0.0:0", "--config"]).arg(&file));
        run.error(2).to_owned()
    };
    let tls = "[tls]\ncertificate_file = 'c'\nprivate_key_file = 'k'\n";
    let callers = new_caller(&["a", "--role", "admin"]).1;
    let (neither, no_callers, no_tls) = (refused(""), refused(tls), refused(&callers));
    assert!(
        neither.contains("tls.certificate_file")
            && neither.contains("caller new")
            && neither.contains("--insecure")
    );
    assert!(!no_callers.contains("tls.certificate_file") && no_callers.contains("caller new"));
    assert!(no_tls.contains("tls.certificate_file") && !no_tls.contains("caller new"));
}

#[test]
fn caller_new_prints_a_key_once_and_the_lines_for_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("countersign.toml");
    let args = [
        "gateway-1",
        "--role",
        "validator",
        "--tenant",
        "acme",
        "--tenant",
        "",
        "--audience",
        "https://api.test",
    ];
    let (key, stanza) = new_caller(&args);
    assert!(!stanza.contains(&key));
    fs::write(&file, &stanza).unwrap();
    run(countersign().args(["config", "check", "--config"]).arg(&file)).ok();
    let print =
        run(countersign().args(["config", "print", "--json", "--config"]).arg(&file)).json();
    assert_eq!(print["callers"][0]["name"], "gateway-1");
    assert_eq!(print["callers"][0]["tenants"], serde_json::json!(["acme", ""]));
    assert_ne!(new_caller(&args).0, key);
    let json = run(countersign().args(["caller", "new", "x", "--role", "admin", "--json"])).json();
    assert!(
        json["api_key"].as_str().unwrap().starts_with("cs_ck_")
            && json["caller"]["roles"][0] == "admin"
    );
    for (wrong, says) in [
        (&["a b", "--role", "admin"][..], "the name may only contain"),
        (&["a", "--role", "admin", "--tenant", "a\nb"], "a tenant must not contain"),
    ] {
        assert!(run(countersign().args(["caller", "new"]).args(wrong)).error(2).contains(says));
    }
    for wrong in [&["a"][..], &["a", "--role", "boss"], &["--role", "admin"]] {
        assert_eq!(run(countersign().args(["caller", "new"]).args(wrong)).code, Some(2));
    }
}
