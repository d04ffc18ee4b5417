//! Tests that a process without free file descriptors stays alive, and accepts connections again
//! once it has descriptors.

use countersign_test_support::process::{Server, serve, without_settings};
use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    process::Command,
};

/// Returns a command that runs `command` with at most `count` file descriptors.
fn with_descriptors(count: u32, command: &Command) -> Command {
    let mut limited = Command::new("bash");
    limited
        .args(["-c", &format!("ulimit -n {count} && exec \"$@\""), "bash"])
        .arg(command.get_program());
    limited.args(command.get_args());
    without_settings(&mut limited);
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.arg0("bash");
    limited
}

#[test]
fn the_service_recovers_after_it_had_no_file_descriptors_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::launch(&mut with_descriptors(80, &serve(folder.path())));
    assert!(
        server.log().iter().any(|line| line.contains("fewer file descriptors")),
        "the log warns at the start"
    );
    // The service may accept a connection, leave it in the backlog, or close it.
    let mut flood: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    server.line("a connection cannot be accepted");
    // A connection that was accepted is served.
    let first = &mut flood[0];
    first.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut settings = [0; 9];
    first.read_exact(&mut settings).unwrap();
    assert_eq!(settings[3], 4, "a frame of settings");
    drop(flood);
    server.cli(["session", "create", "alice"]).ok();
    server.stop();
}
