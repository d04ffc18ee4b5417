//! Tests that kill the process (`kill -9`) at a random instant. Nothing that was acknowledged may
//! be lost, and nothing may be half done.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use countersign_test_support::{
    ledger::{Account, Client, Dice},
    process::{self, Server},
};
use futures_util::future::join_all;
use tokio::sync::watch;

/// The number of calls under way at the same time.
const CALLERS: usize = 8;

/// Returns a source of random numbers with the seed `COUNTERSIGN_TEST_SEED`, or with a new one.
/// Prints the seed.
fn dice() -> Dice {
    let seed = match env::var("COUNTERSIGN_TEST_SEED") {
        Ok(seed) => seed.parse().expect("COUNTERSIGN_TEST_SEED is a number"),
        Err(_) => RandomState::new().hash_one(()),
    };
    println!("COUNTERSIGN_TEST_SEED={seed}");
    Dice(seed)
}

/// Returns the number of rounds, which the environment may set.
fn rounds(default: usize) -> usize {
    let rounds = env::var("COUNTERSIGN_TEST_CRASH_ROUNDS");
    rounds.map_or(default, |rounds| {
        rounds.parse().expect("COUNTERSIGN_TEST_CRASH_ROUNDS is a number")
    })
}

/// Returns a command that starts the service. Its access tokens and its grace last longer than the
/// test, so no token expires and no repeated refresh counts as a reuse.
fn serve(data_dir: &Path) -> Command {
    let mut command = process::serve(data_dir);
    command.envs([
        ("COUNTERSIGN_TOKENS__MAX_ACCESS_TOKEN_TTL", "2d"),
        ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "2d"),
        ("COUNTERSIGN_POLICIES__DEFAULT__REFRESH_GRACE", "1d"),
    ]);
    command
}

/// Makes random calls, one after the other, until the server is gone. Returns the accounts, which
/// record the acknowledged writes.
async fn drive(
    mut client: Client,
    name: String,
    mut dice: Dice,
    answers: watch::Sender<usize>,
) -> Vec<Account> {
    let mut accounts: Vec<Account> = vec![];
    loop {
        if accounts.last().is_none_or(Account::is_full) {
            accounts.push(Account::new(format!("{name}/{}", accounts.len())));
        }
        let recent = accounts.len().min(4);
        let index = accounts.len() - 1 - dice.roll(recent);
        match accounts[index].call(&mut client, &mut dice).await {
            Ok(()) => answers.send_modify(|count| *count += 1),
            Err(status) => {
                assert_eq!(
                    countersign_test_support::ledger::reason(&status),
                    "",
                    "the server refused a good call: {status:?}"
                );
                return accounts;
            }
        }
    }
}

/// Puts the server under load, and kills it after `answers` answers.
async fn load_and_kill(
    mut server: Server,
    name: String,
    dice: &mut Dice,
    answers: usize,
) -> Vec<Account> {
    let (sender, mut counter) = watch::channel(0);
    let mut callers = vec![];
    for caller in 0..CALLERS {
        let seed = Dice(dice.0 ^ u64::try_from(caller + 1).unwrap() << 32);
        callers.push(tokio::spawn(drive(
            server.sessions().await,
            format!("{name}/{caller}"),
            seed,
            sender.clone(),
        )));
    }
    drop(sender);
    // If all callers ended before the kill, the join below reports their errors.
    let _ = counter.wait_for(|count| *count >= answers).await;
    server.kill();
    join_all(callers).await.into_iter().flat_map(Result::unwrap).collect()
}

/// Checks that the server still has everything that the accounts recorded.
async fn verify(server: &Server, accounts: &mut [Account]) {
    let client = server.sessions().await;
    let share = accounts.len().div_ceil(CALLERS).max(1);
    let checks = accounts.chunks_mut(share).map(|share| {
        let mut client = client.clone();
        async move {
            for account in share {
                account.verify(&mut client).await;
            }
        }
    });
    join_all(checks).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_a_kill_and_other_writes_are_never_half_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut dice = dice();
    let mut all = vec![];
    let mut server = Server::launch(&mut serve(folder.path()));
    for round in 0..rounds(12) {
        let answers = dice.roll(200);
        let mut accounts =
            load_and_kill(server, format!("round {round}"), &mut dice, answers).await;
        server = Server::launch(&mut serve(folder.path()));
        verify(&server, &mut accounts).await;
        all.extend(accounts);
    }
    server.kill();
    verify(&Server::launch(&mut serve(folder.path())), &mut all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_starts_again_after_its_first_start_was_killed_at_any_moment() {
    let mut dice = dice();
    for _ in 0..rounds(12) {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::spawn(&mut process::serve(folder.path()));
        // The sleep chooses the moment of the crash at random.
        thread::sleep(Duration::from_micros(dice.roll(60_000).try_into().unwrap()));
        server.kill();
        let mut server = Server::start(folder.path());
        let mut account = Account::new("alice".to_owned());
        account.call(&mut server.sessions().await, &mut dice).await.unwrap();
        server.kill();
        account.verify(&mut Server::start(folder.path()).sessions().await).await;
    }
}
