//! What is bad on the HTTP side: heads, framing, methods, credentials, and clients that hold a
//! connection. It is sent by sockets, byte by byte as it stands here, to a service that then
//! answers what is good, on the same connection if that must stay open.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::{
    bad_input::field::Field,
    server::{Home, eventually, in_time},
};

/// Follows each request, on the same connection.
const NEXT: &str = "GET /livez HTTP/1.1\r\nhost: next\r\nconnection: close\r\n\r\n";

/// All that comes back until the connection is closed.
async fn send(address: SocketAddr, pieces: impl Iterator<Item = &[u8]>) -> String {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let writing = async {
        for piece in pieces {
            // Whoever refuses a request may close before it has come to its end.
            if writer.write_all(piece).await.is_err() {
                break;
            }
        }
    };
    let mut bytes = vec![];
    let (read, ()) = tokio::join!(in_time("the connection is closed", reader.read_to_end(&mut bytes)), writing);
    read.unwrap_or_else(|error| panic!("the answer is lost: {error}"));
    String::from_utf8(bytes).unwrap()
}

/// The statuses of the answers.
fn statuses(answers: &str) -> Vec<u16> {
    let answers = answers.split("HTTP/1.").skip(1);
    answers.map(|answer| answer[2..5].parse().unwrap()).collect()
}

async fn statuses_of(address: SocketAddr, request: &str) -> Vec<u16> {
    statuses(&send(address, [request.as_bytes(), NEXT.as_bytes()].into_iter()).await)
}

/// It is answered, and so is the next.
const ANSWERED: &[u16] = &[200, 200];

/// A head of so many bytes, whole, in one long line, in several lines, or in its target.
fn head_of(bytes: usize, shape: &str) -> String {
    let (start, end) = match shape {
        "one line" => ("GET /livez HTTP/1.1\r\nhost: a\r\nx: ".to_owned(), "\r\n\r\n"),
        "many lines" => (
            "GET /livez HTTP/1.1\r\nhost: a\r\n".to_owned()
                + &format!("x: {}\r\n", "y".repeat(600)).repeat(100)
                + "z: ",
            "\r\n\r\n",
        ),
        _ => ("GET /livez?".to_owned(), " HTTP/1.1\r\nhost: a\r\n\r\n"),
    };
    let filling = "f".repeat(bytes - start.len() - end.len());
    start + &filling + end
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_64_kib_and_not_a_byte_more() {
    const MOST: usize = 64 << 10;
    let field = Field::start().await;
    let address = field.server.http;
    let good = "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n";
    let mut wrong = vec![];
    for shape in ["one line", "many lines", "target"] {
        // The target itself has one byte less at most than the library reads, and less than the
        // head.
        let most = if shape == "target" { MOST - 64 } else { MOST };
        for (bytes, expected) in
            [(most, 200), (MOST + 1, 431), (66_000, 431), (90_000, 431), (200_000, 431), (900_000, 431)]
        {
            let head = head_of(bytes, shape);
            assert_eq!(head.len(), bytes);
            for (before, piece) in [("", bytes), ("", 1000), (good, bytes), (good, 4096), (good, 65_000)] {
                let all = format!("{before}{head}{NEXT}");
                let told = statuses(&send(address, all.as_bytes().chunks(piece)).await);
                let mut wanted = vec![200; usize::from(!before.is_empty())];
                wanted.push(expected);
                wanted.extend((expected == 200).then_some(200));
                if told != wanted {
                    wrong.push(format!(
                        "{bytes} bytes in {shape}, after {} in pieces of {piece}: {told:?}",
                        before.len()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    field.survives("long heads", &[], 0, async {}).await;
    field.finish().await;
}

/// Requests without end.
fn pipelined() -> Vec<u8> {
    b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(10_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_clients_that_read_nothing_fill_the_port_and_its_reserve_probes_get_in() {
    let server = Home::new("[limits]\nmax_http_connections = 4").await.start().await;
    let status = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        send(server.http, [request.as_bytes()].into_iter()).await
    };
    let mut silent = vec![];
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream.readable().await.unwrap();
        silent.push(tokio::spawn(async move {
            let _ = stream.write_all(&pipelined()).await;
            // It stays open, whether or not there was room for all that on the way.
            std::future::pending::<()>().await;
        }));
    }
    let mut others = vec![];
    for _ in 0..100 {
        others.push(TcpStream::connect(server.http).await.unwrap());
    }
    for path in ["/livez", "/readyz"] {
        let answer = status(path).await;
        assert_eq!(statuses(&answer), [200], "{path}");
    }
    for path in ["/metrics", "/forward-auth", "/none", "/.well-known/jwks.json"] {
        let answer = status(path).await;
        assert_eq!(statuses(&answer), [503], "{path}");
        assert!(answer.contains("limits.max_http_connections") && answer.contains("retry-after: 1"), "{answer}");
    }
    silent.iter().for_each(|writing| writing.abort());
    let metrics = eventually("there is room again", async || {
        Some(status("/metrics").await).filter(|answer| statuses(answer) == [200])
    })
    .await;
    let counted = |name: &str| -> f64 {
        let start = format!("countersign_{name}{{side=\"http\"}} ");
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_else(|| panic!("{metrics}"))
            .parse()
            .unwrap()
    };
    assert!(counted("connections_reserved_total") >= 106.0 && counted("connections_reserved_open") <= 64.0);
    assert!(counted("connections_displaced_total") > 0.0);
    assert_eq!(counted("connections_refused_total"), 0.0);
    drop(others);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_or_sends_nothing_or_little_does_not_keep_its_connection() {
    let settings = "[limits]\nmax_http_connections = 4\ncall_timeout = '500ms'\nidle_timeout = '1s'";
    let server = Home::new(settings).await.start().await;
    // Takes nothing; takes a byte now and then; sends a head, and the content of a form, byte by
    // byte.
    let takes_nothing = async {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        while stream.write_all(&pipelined()).await.is_ok() {}
    };
    let nibbles = async {
        let (mut reader, mut writer) = TcpStream::connect(server.http).await.unwrap().into_split();
        let reading = async {
            let mut byte = [0; 1];
            while reader.read(&mut byte).await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let writing = async { while writer.write_all(&pipelined()).await.is_ok() {} };
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    };
    let trickles = async |start: &str| {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        while stream.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let form = "POST /oauth2/introspect HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n";
    let length = format!("{form}content-length: 16000\r\n\r\n");
    let chunk = format!("{form}transfer-encoding: chunked\r\n\r\n1;");
    let unread = "GET /livez HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
    in_time("each of them is cut off", async {
        tokio::join!(takes_nothing, nibbles);
        tokio::join!(trickles("GET /"), trickles(&length), trickles(&chunk), trickles(unread));
    })
    .await;
    assert_eq!(statuses_of(server.http, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await, ANSWERED);
    server.stop().await;
}
