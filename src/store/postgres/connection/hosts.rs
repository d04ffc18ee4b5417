//! The servers that a URL names: resolves their addresses, and tries them until a connection
//! succeeds.
//!
//! A server may accept a connection and then not answer, because it is stopped or its disk hangs.
//! So the next server is tried in parallel, as RFC 8305 does with the addresses of a name. Each
//! attempt has its own time-out, which covers everything up to the caller's first statement.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    time::sleep,
};
use tokio_postgres::{Config, config::Host};
use tokio_util::either::Either;

/// The time after which the next server is tried in parallel (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);
/// The pause after which a server that failed temporarily is tried again, while other servers have
/// yet to answer. It may be the standby that is taking over.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// A server as the URL names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The name for which the server's certificate must be valid; empty for a Unix socket.
    pub name: String,
    location: Location,
}

/// The location of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    Name(String, u16),
    Socket(PathBuf),
}

/// An address to connect to.
#[derive(Clone, Debug)]
pub enum Address {
    /// An address of the network.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// The failure of an attempt to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The problem, in one line.
    pub problem: String,
    /// True if a later attempt may succeed although nobody changes anything.
    pub is_temporary: bool,
}

/// Returns the servers that the URL names, in the order of the URL.
pub fn servers(config: &Config) -> Result<Vec<Server>, String> {
    let (hosts, addresses, ports) =
        (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err("names no host".to_owned());
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(format!(
            "names {} hosts but {} values of hostaddr",
            hosts.len(),
            addresses.len()
        ));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("names {} ports for {count} hosts", ports.len()));
    }
    let server = |index: usize| {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        let (name, socket) = match hosts.get(index) {
            Some(Host::Tcp(name)) => (name.clone(), None),
            Some(Host::Unix(folder)) => {
                (String::new(), Some(folder.join(format!(".s.PGSQL.{port}"))))
            }
            None => (String::new(), None),
        };
        let address: Option<&IpAddr> = addresses.get(index);
        let location = match (address, socket) {
            (Some(address), _) => Location::Name(address.to_string(), port),
            (None, Some(socket)) => Location::Socket(socket),
            (None, None) => Location::Name(name.clone(), port),
        };
        Server { name, location }
    };
    Ok((0..count).map(server).collect())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Server {
    /// Returns whether the traffic to this server crosses a network. Traffic to a Unix socket or to
    /// a loopback address does not.
    pub fn is_remote(&self) -> bool {
        match &self.location {
            Location::Socket(_) => false,
            Location::Name(name, _) => {
                let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
                name != "localhost" && !name.parse().is_ok_and(is_loopback)
            }
        }
    }

    /// Resolves the addresses of the server.
    pub async fn resolve(&self) -> io::Result<Vec<Address>> {
        match &self.location {
            Location::Socket(path) => Ok(vec![Address::Unix(path.clone())]),
            Location::Name(name, port) => {
                let addresses: Vec<_> =
                    lookup_host((name.as_str(), *port)).await?.map(Address::Tcp).collect();
                if addresses.is_empty() {
                    Err(io::Error::other("the name has no address"))
                } else {
                    Ok(addresses)
                }
            }
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Location::Name(name, port) if name.contains(':') => write!(f, "[{name}]:{port}"),
            Location::Name(name, port) => write!(f, "{name}:{port}"),
            Location::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The byte stream of a connection.
pub type Transport = Either<TcpStream, UnixStream>;

/// Opens a connection, and sends nothing to the server yet.
pub async fn open(address: &Address, config: &Config) -> io::Result<Transport> {
    match address {
        Address::Unix(path) => Ok(Either::Right(UnixStream::connect(path).await?)),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            close_if_silent(&stream, config)?;
            Ok(Either::Left(stream))
        }
    }
}

/// Makes the operating system close a connection on which the network has become silent. This does
/// not detect a server process that is stopped, because the operating system of that machine still
/// answers.
fn close_if_silent(stream: &TcpStream, config: &Config) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    if let Some(limit) = config.get_tcp_user_timeout() {
        sockopt::set_tcp_user_timeout(
            stream,
            u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        )?;
    }
    if config.get_keepalives() {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, config.get_keepalives_idle())?;
        if let Some(interval) = config.get_keepalives_interval() {
            sockopt::set_tcp_keepintvl(stream, interval)?;
        }
        if let Some(retries) = config.get_keepalives_retries() {
            sockopt::set_tcp_keepcnt(stream, retries)?;
        }
    }
    Ok(())
}

/// Tries all candidates until one succeeds. The next candidate is started when the previous one has
/// failed, or after `HEAD_START`. A candidate that failed temporarily is tried again as long as
/// others have yet to answer for the first time. A candidate with a permanent failure, such as a
/// wrong password, is not tried again. If no candidate succeeds, the failure of each is returned.
pub async fn first_success<C, T, A>(
    candidates: &[C],
    attempt: impl Fn(C) -> A,
) -> Result<T, Vec<Failure>>
where
    C: Clone,
    A: Future<Output = Result<T, Failure>>,
{
    let attempt = &attempt;
    let run = |index: usize, candidate: C, is_first: bool| async move {
        if !is_first {
            sleep(ASK_AGAIN).await;
        }
        (index, candidate.clone(), is_first, attempt(candidate).await)
    };
    let mut waiting = candidates.iter().cloned().enumerate();
    let mut failures = vec![None; candidates.len()];
    let mut running = FuturesUnordered::new();
    let mut open = 0;
    loop {
        let is_last = match waiting.next() {
            Some((index, candidate)) => {
                running.push(run(index, candidate, true));
                open += 1;
                waiting.len() == 0
            }
            None => true,
        };
        let head_start = sleep(HEAD_START);
        tokio::pin!(head_start);
        loop {
            if open == 0 && is_last {
                return Err(failures.into_iter().flatten().collect());
            }
            tokio::select! {
                Some((index, candidate, is_first, outcome)) = running.next() => match outcome {
                    Ok(success) => return Ok(success),
                    Err(failure) => {
                        if failure.is_temporary {
                            running.push(run(index, candidate, false));
                        }
                        if let Some(location) = failures.get_mut(index) {
                            *location = Some(failure);
                        }
                        open -= usize::from(is_first);
                        if is_first && !is_last {
                            break;
                        }
                    }
                },
                () = &mut head_start, if !is_last => break,
                else => return Err(failures.into_iter().flatten().collect()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicU32, Ordering::Relaxed},
    };

    use tokio::time::Instant;

    use super::*;

    /// The behavior of a candidate. Times are in milliseconds.
    #[derive(Clone, Copy, Debug)]
    enum Does {
        Succeed(u64),
        Fail(u64),
        Hang,
        /// Fails at once, until this time has passed since the beginning of the test; then
        /// succeeds.
        SucceedFrom(u64),
    }
    use Does::{Fail, Hang, Succeed, SucceedFrom};

    /// Tries candidates, each with a time-out of one second. Returns the outcome, and the number of
    /// milliseconds that it took.
    async fn try_all(candidates: &[Does]) -> (Result<usize, Vec<String>>, u64) {
        let began = Instant::now();
        let millis = |count| sleep(Duration::from_millis(count));
        let numbered: Vec<_> = candidates.iter().copied().enumerate().collect();
        let attempt = |(index, does): (usize, Does)| async move {
            let failed = |problem: &str| {
                Err(Failure { problem: format!("{index} {problem}"), is_temporary: true })
            };
            let work = async {
                match does {
                    Succeed(after) => {
                        millis(after).await;
                        Ok(index)
                    }
                    Fail(after) => {
                        millis(after).await;
                        failed("fails")
                    }
                    Hang => pending().await,
                    SucceedFrom(from) if began.elapsed() >= Duration::from_millis(from) => {
                        Ok(index)
                    }
                    SucceedFrom(_) => failed("is not ready"),
                }
            };
            tokio::time::timeout(Duration::from_secs(1), work)
                .await
                .unwrap_or_else(|_| failed("hangs"))
        };
        let outcome = first_success(&numbered, attempt).await;
        let outcome = outcome
            .map_err(|failures| failures.into_iter().map(|failure| failure.problem).collect());
        (outcome, u64::try_from(began.elapsed().as_millis()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_success_counts_even_if_other_candidates_fail_or_hang() {
        for (candidates, expected, by) in [
            (vec![Succeed(10)], 0, 10),
            (vec![Succeed(200), Succeed(0)], 0, 200),
            (vec![Fail(10), Succeed(10)], 1, 20),
            (vec![Hang, Succeed(10)], 1, 260),
            (vec![Succeed(10), Hang], 0, 10),
            (vec![Hang, Hang, Succeed(10)], 2, 510),
            (vec![Hang, Fail(0), Succeed(10)], 2, 260),
            (vec![Succeed(900), Hang], 0, 900),
            (vec![Hang, SucceedFrom(600)], 1, 750),
            (vec![SucceedFrom(400), Hang], 0, 500),
            (vec![Fail(0), Hang, SucceedFrom(300)], 2, 750),
        ] {
            let (outcome, millis) = try_all(&candidates).await;
            assert_eq!(outcome, Ok(expected), "{candidates:?}");
            assert!((by..by + 5).contains(&millis), "{candidates:?}: {millis}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_attempt_fails_once_all_candidates_have_failed() {
        for (candidates, expected, by) in [
            (vec![], vec![], 0),
            (vec![Fail(10)], vec!["0 fails"], 10),
            (vec![Fail(10), Fail(10)], vec!["0 fails", "1 fails"], 20),
            (vec![Hang, Fail(0)], vec!["0 hangs", "1 fails"], 1000),
            (vec![Fail(0), Hang], vec!["0 fails", "1 hangs"], 1000),
            (vec![Hang, Hang], vec!["0 hangs", "1 hangs"], 1250),
        ] {
            let (outcome, millis) = try_all(&candidates).await;
            assert_eq!(outcome.unwrap_err(), expected, "{candidates:?}");
            assert!((by..by + 5).contains(&millis), "{candidates:?}: {millis}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_temporary_failure_is_retried_with_a_pause() {
        assert_eq!(times_tried(true).await, 20);
    }

    /// After a number of wrong passwords, the account might be locked.
    #[tokio::test(start_paused = true)]
    async fn a_permanent_failure_is_not_retried() {
        assert_eq!(times_tried(false).await, 1);
    }

    /// Counts how often a failing candidate is tried in ten seconds, during which another one
    /// hangs.
    async fn times_tried(is_temporary: bool) -> u32 {
        let asked = AtomicU32::new(0);
        let asked = &asked;
        let attempt = |hangs: bool| async move {
            if !hangs {
                asked.fetch_add(1, Relaxed);
                return Err::<(), _>(Failure { problem: String::new(), is_temporary });
            }
            sleep(Duration::from_secs(10)).await;
            Err(Failure { problem: String::new(), is_temporary: true })
        };
        assert_eq!(first_success(&[true, false], attempt).await.unwrap_err().len(), 2);
        asked.load(Relaxed)
    }

    #[test]
    fn servers_are_read_as_libpq_does() {
        for (url, expected) in [
            ("postgres://u@a,b:5433/d", "a:5432 b:5433"),
            ("postgres://u@[::1]:7,10.0.0.1/d", "[::1]:7 10.0.0.1:5432"),
            ("postgres://u@%2Frun%2Fpg:6/d", "/run/pg/.s.PGSQL.6"),
            ("host=a,b port=6000 hostaddr=10.0.0.1,10.0.0.2", "10.0.0.1:6000 10.0.0.2:6000"),
            ("hostaddr=10.0.0.1", "10.0.0.1:5432"),
        ] {
            let servers = servers(&url.parse().unwrap()).unwrap();
            let shown: Vec<_> = servers.iter().map(ToString::to_string).collect();
            assert_eq!(shown.join(" "), expected, "{url}");
        }
        let named = servers(&"host=a hostaddr=10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(named[0].name, "a", "the certificate is for the name");
        for url in ["user=u", "host=a,b hostaddr=10.0.0.1", "host=a,b,c port=1,2"] {
            assert!(servers(&url.parse().unwrap()).is_err(), "{url}");
        }
    }
}
