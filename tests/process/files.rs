//! Tests of the owners and modes that the service's files may have. docs/operations.md has the
//! table of these rules.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use countersign_test_support::{
    certificates::Certificates,
    process::{Server, countersign, run, serve, without_settings},
};
use tempfile::TempDir;

use crate::start::{refuses, used};

/// A user other than root, who owns only the files that a test gives to the user.
const NOBODY: u32 = 65_534;
/// A supplementary group of the process. The `fsGroup` of a Kubernetes pod is such a group.
const OUR_GROUP: u32 = 2000;
/// A group of which the process is not a member.
const THEIR_GROUP: u32 = 3000;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Returns whether this test runs as root, and so may give files to other users.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A user for whom the modes of files matter, with a copy of the binary. Root may read and write
/// everything, so a test that runs as root starts the binary as another user. That user needs a
/// copy of the binary in a folder that the user may read.
struct User {
    folder: TempDir,
}

impl User {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let user = Self { folder };
        // Another process makes the copy. If this process wrote the copy, a test that forks at the
        // same time would inherit the open file, and the copy could not be executed (ETXTBSY).
        let copied = Command::new("cp")
            .arg(env!("CARGO_BIN_EXE_countersign"))
            .arg(user.binary())
            .status()
            .unwrap();
        assert!(copied.success());
        set_mode(&user.binary(), 0o755);
        set_mode(user.folder.path(), 0o755);
        fs::create_dir(user.data()).unwrap();
        set_mode(&user.data(), 0o700);
        if is_root() {
            chown(user.data(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        user
    }

    fn binary(&self) -> PathBuf {
        self.folder.path().join("countersign")
    }

    /// The data directory, which the user owns.
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Returns a command that runs the binary as [`NOBODY`] with this supplementary group. Only
    /// root can run it.
    fn in_group(&self, group: u32) -> Command {
        let mut command = Command::new("setpriv");
        without_settings(&mut command);
        let ids =
            [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), format!("--groups={group}")];
        command
            .args(ids)
            .arg(self.binary())
            .current_dir("/")
            .env(countersign_test_support::process::GRACE, "0s");
        command
    }

    fn serve_in_group(&self, group: u32, data: &Path) -> Command {
        let mut command = self.in_group(group);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data);
        command
    }

    fn serve(&self) -> Command {
        let mut command = Command::new(self.binary());
        without_settings(&mut command);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data())
            .current_dir("/");
        command.env(countersign_test_support::process::GRACE, "0s");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }
}

#[test]
fn created_files_and_folders_are_private_to_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("a/b");
    let mut command = Command::new("sh");
    without_settings(&mut command);
    // The modes must not depend on the umask.
    command.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(serve(&data).get_program());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .env(countersign_test_support::process::GRACE, "0s");
    let server = Server::launch(&mut command);
    server.cli(["session", "create", "alice"]).ok();
    for folder in [folder.path().join("a"), data.clone()] {
        assert_eq!(mode(&folder), 0o700, "{folder:?}");
    }
    let names = [
        "countersign.db",
        "countersign.db-wal",
        "countersign.db-shm",
        "countersign.db.lock",
        "master.key",
    ];
    for name in names {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    assert_eq!(fs::read_dir(&data).unwrap().count(), names.len(), "and nothing else is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_in_which_others_can_replace_files_is_refused() {
    let folder = used(1).await;
    let data = folder.path();
    for bad in [0o777, 0o770, 0o775, 0o707, 0o1777, 0o2777, 0o2775] {
        if bad == 0o2775 {
            // Mode 2775 is allowed if this process is in the group of the folder.
            if !is_root() {
                continue;
            }
            chown(data, None, Some(THEIR_GROUP)).unwrap();
        }
        set_mode(data, bad);
        let reason = format!("folder {} has mode {bad:04o}", data.display());
        refuses(&mut serve(data), data, &[&reason, "chmod go-w"]);
        refuses(countersign().args(["sweep", "--data-dir"]).arg(data), data, &["chmod go-w"]);
        refuses(countersign().args(["migrate", "--data-dir"]).arg(data), data, &["chmod go-w"]);
    }
    set_mode(data, 0o755);
    Server::start(data).stop();

    // A folder that holds only the database is refused, too.
    let elsewhere = tempfile::tempdir().unwrap();
    set_mode(elsewhere.path(), 0o777);
    let url = format!("sqlite://{}/sessions.db", elsewhere.path().display());
    let mut command = serve(data);
    refuses(
        command.args(["--database-url", &url]),
        elsewhere.path(),
        &[elsewhere.path().to_str().unwrap(), "0777"],
    );
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "no file is created there");

    // A folder without files of the service may have any mode. No server listens on the port in the
    // URL.
    set_mode(data, 0o777);
    let mut command = serve(data);
    command
        .args(["--database-url", "postgres://u@127.0.0.1:1/d"])
        .env("COUNTERSIGN_DATABASE__STARTUP_TIMEOUT", "0s");
    assert!(run(&mut command).error(2).contains("chmod go-w"), "the master key is in it");
    command.env("COUNTERSIGN_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    assert!(!run(&mut command).error(2).contains("chmod go-w"), "no file of the service is in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_others_can_change_is_refused_and_one_that_they_can_read_is_made_private() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let files =
        ["countersign.db", "countersign.db-wal", "countersign.db-shm"].map(|name| data.join(name));
    // After a crash all three files are there.
    let mut server = Server::start(data);
    server.cli(["session", "create", "alice"]).ok();
    server.kill();
    for file in &files {
        for bad in [0o666, 0o660, 0o602] {
            set_mode(file, bad);
            let (path, reason) =
                (file.to_str().unwrap(), format!("has mode {bad:04o}, so others can change it"));
            refuses(&mut serve(data), data, &[path, &reason, &format!("run `chmod 600 {path}`")]);
        }
        set_mode(file, 0o644);
    }
    let mut server = Server::start(data);
    let made_private: Vec<_> =
        server.log().iter().filter(|line| line.contains("others could read")).cloned().collect();
    assert_eq!(made_private.len(), files.len(), "{made_private:?}");
    for file in &files {
        assert!(
            made_private.iter().any(|line| line.contains(file.to_str().unwrap())),
            "{file:?} {made_private:?}"
        );
        assert_eq!(mode(file), 0o600, "{file:?}");
    }
    server.stop();
    let mut server = Server::start(data);
    assert!(!server.log().iter().any(|line| line.contains("others could read")), "logged twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_belong_to_another_user_are_refused() {
    if !is_root() {
        return; // Only root may give files to others.
    }
    let folder = used(1).await;
    let data = folder.path().to_owned();
    for name in ["", "countersign.db", "master.key"] {
        let path = if name.is_empty() { data.clone() } else { data.join(name) };
        chown(&path, Some(NOBODY), None).unwrap();
        let path = path.display();
        let says = [format!("{path} belongs to user {NOBODY}"), format!("run `chown 0 {path}`")];
        refuses(&mut serve(&data), &data, &says.each_ref().map(String::as_str));
        chown(path.to_string(), Some(0), None).unwrap();
    }
    // If the database belongs to root, the only reason for the refusal is that the user cannot
    // write to it.
    let user = User::new();
    Server::launch(&mut user.serve()).stop();
    chown(user.data().join("countersign.db"), Some(0), Some(NOBODY)).unwrap();
    refuses(&mut user.serve(), &user.data(), &["countersign.db"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_a_database_is_followed_once_and_a_dangling_link_is_refused() {
    let (folder, elsewhere) = (used(1).await, tempfile::tempdir().unwrap());
    let data = folder.path();
    let (link, target) = (data.join("countersign.db"), elsewhere.path().join("sessions.db"));
    fs::rename(&link, &target).unwrap();
    symlink(elsewhere.path().join("none.db"), &link).unwrap();
    let refused = |says: &[&str]| refuses(&mut serve(data), elsewhere.path(), says);
    refused(&[
        link.to_str().unwrap(),
        "symbolic link to",
        "none.db",
        "no file",
        "correct the link",
    ]);
    assert!(!elsewhere.path().join("none.db").exists());
    let relink = |to: &Path| {
        fs::remove_file(&link).unwrap();
        symlink(to, &link).unwrap();
    };
    relink(&link);
    refused(&[link.to_str().unwrap()]);
    relink(elsewhere.path());
    refused(&[elsewhere.path().to_str().unwrap(), "not a regular file"]);

    relink(&target);
    set_mode(&target, 0o666);
    refused(&[target.to_str().unwrap(), "mode 0666", "chmod 600"]);
    set_mode(&target, 0o600);
    set_mode(elsewhere.path(), 0o777);
    refused(&[elsewhere.path().to_str().unwrap(), "mode 0777", "chmod go-w"]);
    set_mode(elsewhere.path(), 0o700);
    let server = Server::start(data);
    assert_eq!(
        server.cli(["session", "list", "--json"]).json()["sessions"].as_array().unwrap().len(),
        1
    );
    let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let beside: Vec<_> =
        fs::read_dir(data).unwrap().map(|entry| name(entry.unwrap().path())).collect();
    assert!(
        !beside.iter().any(|name| name.ends_with("-wal")),
        "the log is beside the file, not the link: {beside:?}"
    );
}

#[test]
fn a_database_that_cannot_be_written_is_refused() {
    let user = User::new();
    let (data, file) = (user.data(), user.data().join("countersign.db"));
    Server::launch(&mut user.serve()).stop();
    for bad in [0o400, 0o440] {
        set_mode(&file, bad);
        let says = ["countersign.db cannot be written (Permission denied", "chmod u+w"];
        refuses(&mut user.serve(), &data, &says);
    }
    set_mode(&file, 0o600);
    // The lock file of the last run is removed, so that the next start must create one. The mode of
    // the folder forbids that.
    fs::remove_file(data.join("countersign.db.lock")).unwrap();
    set_mode(&data, 0o500);
    refuses(&mut user.serve(), &data, &["countersign.db", "Permission denied"]);
    set_mode(&data, 0o700);
    Server::launch(&mut user.serve()).stop();
    set_mode(&data, 0o500);
    refuses(&mut user.serve(), &data, &["countersign.db cannot be written", "its folder"]);
    set_mode(&data, 0o700);
    Server::launch(&mut user.serve()).stop();
}

#[test]
fn a_key_or_password_file_that_others_can_read_causes_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, "cs_ck_x").unwrap();
    let path = file.to_str().unwrap();
    for (mode, is_open) in [
        (0o600, false),
        (0o400, false),
        (0o640, false),
        (0o620, true),
        (0o644, true),
        (0o666, true),
    ] {
        set_mode(&file, mode);
        let reason = format!("mode {mode:04o}, so others can");
        let is_reported =
            |text: &str| text.lines().any(|line| line.contains(path) && line.contains(&reason));

        // No server listens on this port.
        let list = ["session", "list", "--server", "http://127.0.0.1:1", "--api-key-file", path];
        let refused = run(countersign().args(list));
        assert_eq!(
            (refused.code, is_reported(&refused.stderr)),
            (Some(1), is_open),
            "{mode:o} {refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1 + usize::from(is_open), "{refused:?}");

        let list =
            ["session", "list", "--server", "https://127.0.0.1:1", "--client-key-file", path];
        let refused = run(countersign().args(list).args(["--client-certificate-file", path]));
        assert_eq!(is_reported(&refused.stderr), is_open, "{mode:o} {refused:?}");

        let mut command = serve(&folder.path().join("data"));
        command
            .args(["--database-url", "postgres://u@127.0.0.1:1/d"])
            .env("COUNTERSIGN_DATABASE__PASSWORD_FILE", path);
        command.env("COUNTERSIGN_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        command.env("COUNTERSIGN_DATABASE__STARTUP_TIMEOUT", "0s");
        let refused = run(&mut command);
        assert_eq!(
            (refused.code, is_reported(&refused.stderr)),
            (Some(2), is_open),
            "{mode:o} {refused:?}"
        );
        assert!(!refused.stderr.contains("cs_ck_x"), "{refused:?}");
    }
}

/// Changes the groups and modes of files as the kubelet does at each mount of a volume with
/// `fsGroup`.
fn mount_for_group(path: &Path, group: u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    chown(path, None, Some(group)).unwrap();
    if metadata.is_dir() {
        set_mode(path, metadata.mode() & 0o7777 | 0o2770);
        for entry in fs::read_dir(path).unwrap() {
            mount_for_group(&entry.unwrap().path(), group);
        }
    } else {
        set_mode(path, metadata.mode() & 0o7777 | 0o660);
    }
}

#[test]
fn a_volume_that_is_mounted_for_a_group_of_the_process_is_used_again_and_again() {
    if !is_root() {
        return; // Only root may change the groups of files and processes.
    }
    let user = User::new();
    let volume = user.folder.path().join("volume");
    fs::create_dir(&volume).unwrap();
    set_mode(&volume, 0o755);
    // The data directory is the root of the volume, or a folder in it that the service makes.
    for data in [volume.clone(), volume.join("below")] {
        for sessions in 0..3 {
            mount_for_group(&volume, OUR_GROUP);
            let mut server = Server::launch(&mut user.serve_in_group(OUR_GROUP, &data));
            let listed = server.cli(["session", "list", "--json"]).json();
            let count = listed["sessions"].as_array().map_or(0, Vec::len);
            assert_eq!(count, sessions, "{data:?} {listed}");
            server.cli(["session", "create", "alice"]).ok();
            assert!(
                !server.log().iter().any(|line| line.contains("others could")),
                "{:#?}",
                server.log()
            );
            // A killed service leaves the write-ahead log and the shared-memory file beside the
            // database.
            if sessions == 1 { server.kill() } else { drop(server.stop()) }
        }
    }
    let (database, key) = (volume.join("countersign.db"), volume.join("master.key"));
    mount_for_group(&volume, OUR_GROUP);
    assert_eq!((mode(&volume), mode(&database), mode(&key)), (0o2775, 0o660, 0o660));
    let refused =
        |group, says: &[&str]| refuses(&mut user.serve_in_group(group, &volume), &volume, says);
    refused(THEIR_GROUP, &["mode 2775", "others can change it", "not in group 2000", "chmod go-w"]);
    for path in [&database, &key] {
        let name = path.to_str().unwrap();
        set_mode(path, 0o666);
        refused(OUR_GROUP, &[name, "mode 0666", "others can change it"]);
        set_mode(path, 0o660);
        chown(path, None, Some(THEIR_GROUP)).unwrap();
        refused(OUR_GROUP, &[name, "mode 0660", "not in group 3000"]);
        chown(path, Some(1), Some(OUR_GROUP)).unwrap();
        refused(OUR_GROUP, &[name, "belongs to user 1"]);
        chown(path, Some(NOBODY), None).unwrap();
    }
    // A folder without the set-group-ID bit may have been made writable by a umask instead of a
    // mount.
    set_mode(&volume, 0o775);
    refused(OUR_GROUP, &["mode 0775", "others can change it", "chmod go-w"]);
    set_mode(&volume, 0o755);
    refused(OUR_GROUP, &["master.key", "mode 0660", "others can change it"]);
    set_mode(&volume, 0o2770);
    Server::launch(&mut user.serve_in_group(OUR_GROUP, &volume)).stop();
}

/// The same rule holds for every file with a secret.
#[test]
fn a_secret_may_be_read_by_a_group_of_the_process_and_by_nobody_else() {
    if !is_root() {
        return; // Only root may change the groups of files and processes.
    }
    let user = User::new();
    let folder = user.folder.path();
    let certificates = Certificates::new(folder);
    for name in ["server.pem", "ca.pem"] {
        set_mode(&certificates.path(name), 0o644);
    }
    let [pem, tls_key] =
        ["server.pem", "server.key"].map(|name| certificates.path(name).display().to_string());
    let ca = certificates.path("ca.pem").display().to_string();
    let secret = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let master = secret("master.key", &format!("{}=", "A".repeat(43)));
    let password = secret("password", "hidden");
    let api_key = secret("api.key", "cs_ck_x");
    let own_key = secret("own.pem", "no key at all");
    let nowhere = folder.join("data/none").display().to_string();
    let certificate = ["--client-certificate-file", &pem, "--client-key-file", &tls_key];
    // Each row has the exit code with a good file, the file, its setting or option, the arguments,
    // and the variables.
    let check = vec!["config", "check"];
    let list = |server: &'static str| vec!["session", "list", "--server", server];
    let variable = |name: &'static str, value: &str| vec![(name, value.to_owned())];
    let rows = [
        (
            0,
            &master,
            "keys.master_key_file",
            check.clone(),
            variable("COUNTERSIGN_KEYS__MASTER_KEY_FILE", &master),
        ),
        (
            0,
            &master,
            "keys.additional_master_key_file",
            check.clone(),
            variable("COUNTERSIGN_KEYS__ADDITIONAL_MASTER_KEY_FILE", &master),
        ),
        (
            0,
            &tls_key,
            "tls.private_key_file",
            check.clone(),
            vec![
                ("COUNTERSIGN_TLS__CERTIFICATE_FILE", pem.clone()),
                ("COUNTERSIGN_TLS__PRIVATE_KEY_FILE", tls_key.clone()),
            ],
        ),
        (
            0,
            &password,
            "database.password_file",
            check,
            vec![
                ("COUNTERSIGN_DATABASE__PASSWORD_FILE", password.clone()),
                ("COUNTERSIGN_DATABASE_URL", "postgres://u@127.0.0.1:1/d".to_owned()),
                ("COUNTERSIGN_MASTER_KEY", format!("{}=", "A".repeat(43))),
            ],
        ),
        (
            1,
            &api_key,
            "--api-key-file",
            [list("http://127.0.0.1:1"), vec!["--api-key-file", &api_key]].concat(),
            vec![],
        ),
        (
            1,
            &tls_key,
            "--client-key-file",
            [list("https://127.0.0.1:1"), certificate.to_vec(), vec!["--ca-file", &ca]].concat(),
            vec![],
        ),
        (
            2,
            &own_key,
            "private key",
            vec!["key", "import", &own_key, "--data-dir", &nowhere],
            vec![],
        ),
    ];
    for (code, path, setting, arguments, variables) in rows {
        let is_warned_of = setting.starts_with("--") || setting == "database.password_file";
        for (owner, group, mode, problem) in [
            (0, OUR_GROUP, 0o440, None),
            (0, OUR_GROUP, 0o640, None),
            (NOBODY, OUR_GROUP, 0o640, None),
            (NOBODY, THEIR_GROUP, 0o600, None),
            (
                NOBODY,
                THEIR_GROUP,
                0o640,
                Some("mode 0640, so others can read it: this process is not in group 3000"),
            ),
            (NOBODY, OUR_GROUP, 0o660, Some("mode 0660, so others can change it")),
            (0, OUR_GROUP, 0o444, Some("mode 0444, so others can read it")),
            (1, OUR_GROUP, 0o440, Some("belongs to user 1")),
            (0, 0, 0o400, Some("Permission denied")),
        ] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            chown(path, Some(owner), Some(group)).unwrap();
            let mut command = user.in_group(OUR_GROUP);
            let run = run(command
                .args(&arguments)
                .envs(variables.iter().map(|(name, value)| (name, value))));
            let row = format!("{setting} {owner}:{group} {mode:o}: {run:?}");
            let denied = problem == Some("Permission denied");
            let expected = match problem {
                Some(_) if denied || !is_warned_of => 2,
                _ => code,
            };
            assert_eq!(run.code, Some(expected), "{row}");
            let is_reported = |words: &str| {
                run.stderr.lines().any(|line| line.contains(path) && line.contains(words))
            };
            match problem {
                Some(problem) => assert!(is_reported(problem) && is_reported(setting), "{row}"),
                None => assert!(!is_reported("others can") && !is_reported("belongs"), "{row}"),
            }
            assert!(!run.stderr.contains("hidden") && !run.stderr.contains("cs_ck_x"), "{row}");
        }
    }
}
