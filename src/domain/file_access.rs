//! Checks who may read and change a file, by its owner, group and mode. All such checks are here;
//! docs/operations.md has a table of the rules.

use std::{fmt, fs::Metadata, io, os::unix::fs::MetadataExt, path::PathBuf};

/// The owner, group and mode of a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The user id of the owner.
    pub owner: u32,
    /// The id of the group.
    pub group: u32,
    /// The mode. Only the permission bits matter.
    pub mode: u32,
}

impl From<&Metadata> for Access {
    fn from(metadata: &Metadata) -> Self {
        Self { owner: metadata.uid(), group: metadata.gid(), mode: metadata.mode() }
    }
}

/// The user and the groups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The effective user id.
    pub user: u32,
    /// The effective group id and the supplementary group ids.
    pub groups: Vec<u32>,
}

impl Identity {
    /// Returns the user and the groups of this process.
    pub fn of_this_process() -> Self {
        let supplementary = rustix::process::getgroups().unwrap_or_default();
        let groups = supplementary.into_iter().chain([rustix::process::getegid()]);
        Self {
            user: rustix::process::geteuid().as_raw(),
            groups: groups.map(rustix::process::Gid::as_raw).collect(),
        }
    }

    /// Returns whether a file may belong to this owner: to the user of the process, or to root,
    /// which can read and change all files anyway.
    fn trusts_owner(&self, owner: u32) -> bool {
        owner == self.user || owner == ROOT
    }

    /// Returns whether a folder is deliberately shared with a group of the process: the group may
    /// write to it, and the set-group-ID bit is set, so that new files in it get the same group.
    /// The group's right to write alone does not show intent, because a umask of 002 grants it by
    /// accident. Nobody sets the set-group-ID bit by accident. Kubernetes sets both on every folder
    /// of a volume with `fsGroup`.
    fn shares(&self, folder: Access) -> bool {
        let group_may_write = folder.mode & GROUP & WRITE != 0;
        let is_shared =
            folder.mode & SET_GROUP_ID != 0 && group_may_write && folder.mode & OTHERS & WRITE == 0;
        is_shared && self.trusts_owner(folder.owner) && self.groups.contains(&folder.group)
    }
}

/// The access that a file may give to other users. In a folder that is shared with a group of the
/// process, members of that group may do what the owner may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Only the owner may read or change the file, except that a group of the process may read it.
    /// The exception is for secrets that are mounted into a container: they belong to root and are
    /// readable by a group.
    Secret,
    /// Only the owner may read or change the file.
    Private,
    /// Everybody may read the file, but only the owner may change it.
    OthersOnlyRead,
}

/// The reason why a file breaks its rule. The displayed text completes a sentence that starts with
/// the name of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// The file belongs to another user, who can change it whatever its mode says.
    Owner {
        /// The id of that user.
        owner: u32,
        /// The id of the user that runs this process.
        user: u32,
    },
    /// The mode of the file lets others read or change it.
    Mode(u32),
    /// The mode of the file lets its group read or change it, and this process does not belong to
    /// that group.
    Group {
        /// The mode.
        mode: u32,
        /// The id of that group.
        group: u32,
    },
}

const PERMISSIONS: u32 = 0o7777;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP: u32 = 0o070;
const OTHERS: u32 = 0o007;
const WRITE: u32 = 0o022;
const ROOT: u32 = 0;

impl Rule {
    /// Returns the mode bits that must not be set. `is_member` says whether the process belongs to
    /// the group of the file.
    const fn forbidden(self, is_member: bool) -> u32 {
        match self {
            Self::Secret if is_member => OTHERS | WRITE,
            Self::Secret | Self::Private => GROUP | OTHERS,
            Self::OthersOnlyRead => WRITE,
        }
    }

    /// Checks that a file in a folder obeys this rule when a process uses the file. To check a
    /// folder itself, pass its access for both arguments.
    pub fn judge(self, access: Access, folder: Access, process: &Identity) -> Result<(), Exposure> {
        let Access { owner, group, mode } = access;
        if !process.trusts_owner(owner) {
            return Err(Exposure::Owner { owner, user: process.user });
        }
        let is_member = process.groups.contains(&group);
        let is_shared = is_member && group == folder.group && process.shares(folder);
        let forbidden =
            if is_shared { self.forbidden(true) & OTHERS } else { self.forbidden(is_member) };
        match mode & forbidden {
            0 => Ok(()),
            exposed if exposed & OTHERS == 0 && !is_member => {
                Err(Exposure::Group { mode: mode & PERMISSIONS, group })
            }
            _ => Err(Exposure::Mode(mode & PERMISSIONS)),
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right = |mode: u32| if mode & WRITE == 0 { "read" } else { "change" };
        match self {
            Self::Owner { owner, user } => {
                write!(
                    f,
                    "belongs to user {owner}, who can read and change it, and this process is \
                     user {user}"
                )
            }
            Self::Mode(mode) => write!(f, "has mode {mode:04o}, so others can {} it", right(*mode)),
            Self::Group { mode, group } => {
                write!(
                    f,
                    "has mode {mode:04o}, so others can {} it: this process is not in group \
                     {group}",
                    right(*mode)
                )
            }
        }
    }
}

impl Exposure {
    /// Returns the shell command that corrects the owner or the mode of the file, without the path.
    pub fn command(self) -> String {
        match self {
            Self::Owner { user, .. } => format!("chown {user}"),
            Self::Mode(_) | Self::Group { .. } => "chmod 600".to_owned(),
        }
    }

    /// Returns the mode of the file, if the mode and not the owner is the reason.
    pub fn mode(self) -> Option<u32> {
        match self {
            Self::Owner { .. } => None,
            Self::Mode(mode) | Self::Group { mode, .. } => Some(mode),
        }
    }
}

/// Returns the remedy for an error that occurred while a file with a secret was read, as a suffix
/// for its message. The suffix is empty if the permissions of the file are not the cause.
pub fn secret_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ": let this user own it, or let one of its groups read it (in Kubernetes, set fsGroup)"
        }
        _ => "",
    }
}

/// The purpose of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The data directory, or the directory that contains the database.
    Folder,
    /// The SQLite database, or its `-wal`, `-shm` or `-journal` file.
    Database,
    /// A copy of the database that is to be restored.
    Backup,
    /// A master key.
    MasterKey,
}

/// A file or directory of the service that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Exposed {
    /// The purpose of the file or directory.
    pub role: Role,
    /// The path.
    pub path: PathBuf,
    /// The reason why it breaks its rule.
    pub exposure: Exposure,
}

/// Prints one line with the file, the reason, and the command that corrects it.
impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let name = match self.role {
            Role::Folder => "folder",
            Role::Database => "database file",
            Role::Backup => "backup file",
            Role::MasterKey => "master key file",
        };
        write!(f, "{name} {path} {}: ", self.exposure)?;
        match (self.exposure, self.role) {
            (Exposure::Mode(_) | Exposure::Group { .. }, Role::Folder) => {
                write!(
                    f,
                    "run `chmod go-w {path}`, or configure a folder inside it, which is then \
                     created for this user alone"
                )
            }
            (exposure, _) => write!(f, "run `{} {path}`", exposure.command()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u32 = 1000;
    const THEM: u32 = 1001;
    const OUR_GROUP: u32 = 2000;
    const THEIR_GROUP: u32 = 3000;

    fn process() -> Identity {
        Identity { user: US, groups: vec![100, OUR_GROUP] }
    }

    fn access(owner: u32, group: u32, mode: u32) -> Access {
        Access { owner, group, mode }
    }

    /// The file modes that kubelet sets on secrets and on the files of a volume, and some other
    /// modes.
    const MODES: [u32; 12] = [
        0o400, 0o600, 0o100_700, 0o440, 0o640, 0o620, 0o660, 0o604, 0o602, 0o644, 0o664, 0o101_601,
    ];

    #[test]
    fn each_rule_refuses_file_modes_that_give_others_too_much_access() {
        let private = access(US, US, 0o700);
        let shared = access(ROOT, OUR_GROUP, 0o2770);
        let open = access(ROOT, OUR_GROUP, 0o2775);
        for (rule, group, folder, accepted) in [
            (Rule::Secret, OUR_GROUP, private, &[0o400, 0o600, 0o100_700, 0o440, 0o640][..]),
            (Rule::Secret, THEIR_GROUP, private, &[0o400, 0o600, 0o100_700]),
            (
                Rule::Secret,
                OUR_GROUP,
                shared,
                &[0o400, 0o600, 0o100_700, 0o440, 0o640, 0o620, 0o660],
            ),
            (Rule::Secret, THEIR_GROUP, shared, &[0o400, 0o600, 0o100_700]),
            (Rule::Private, OUR_GROUP, private, &[0o400, 0o600, 0o100_700]),
            (Rule::Private, THEIR_GROUP, private, &[0o400, 0o600, 0o100_700]),
            (
                Rule::Private,
                OUR_GROUP,
                open,
                &[0o400, 0o600, 0o100_700, 0o440, 0o640, 0o620, 0o660],
            ),
            (Rule::Private, THEIR_GROUP, open, &[0o400, 0o600, 0o100_700]),
            (
                Rule::OthersOnlyRead,
                OUR_GROUP,
                private,
                &[0o400, 0o600, 0o100_700, 0o440, 0o640, 0o604, 0o644, 0o101_601],
            ),
            (
                Rule::OthersOnlyRead,
                OUR_GROUP,
                shared,
                &[
                    0o400, 0o600, 0o100_700, 0o440, 0o640, 0o620, 0o660, 0o604, 0o644, 0o664,
                    0o101_601,
                ],
            ),
            (
                Rule::OthersOnlyRead,
                THEIR_GROUP,
                shared,
                &[0o400, 0o600, 0o100_700, 0o440, 0o640, 0o604, 0o644, 0o101_601],
            ),
        ] {
            for mode in MODES {
                for owner in [US, ROOT] {
                    let judged = rule.judge(access(owner, group, mode), folder, &process());
                    let row =
                        format!("{rule:?} {owner} {group} {mode:o} in {folder:?}: {judged:?}");
                    assert_eq!(judged.is_ok(), accepted.contains(&mode), "{row}");
                    let is_of_group = |exposure| matches!(exposure, Exposure::Group { .. });
                    assert!(group == THEIR_GROUP || !judged.is_err_and(is_of_group), "{row}");
                }
                let judged = rule.judge(access(THEM, group, mode), folder, &process());
                assert_eq!(
                    judged,
                    Err(Exposure::Owner { owner: THEM, user: US }),
                    "{rule:?} {group} {mode:o}"
                );
            }
        }
        // A process that runs as root refuses the files of other users too.
        let root = Identity { user: ROOT, groups: vec![ROOT] };
        let refused = Rule::Private.judge(access(US, US, 0o600), private, &root);
        assert_eq!(refused, Err(Exposure::Owner { owner: US, user: ROOT }));
    }

    #[test]
    fn a_group_may_write_only_to_a_folder_that_is_deliberately_shared_with_it() {
        let refused = |exposure| Err(exposure);
        for (owner, group, mode, expected) in [
            (US, OUR_GROUP, 0o755, Ok(())),
            (ROOT, THEIR_GROUP, 0o700, Ok(())),
            (US, OUR_GROUP, 0o2770, Ok(())),
            (ROOT, OUR_GROUP, 0o42_770, Ok(())),
            (ROOT, 100, 0o2775, Ok(())),
            // The set-group-ID bit alone, as Debian sets it on home directories, does not make a
            // folder shared, because the group may not write to it.
            (US, OUR_GROUP, 0o2750, Ok(())),
            (US, OUR_GROUP, 0o2755, Ok(())),
            (US, OUR_GROUP, 0o770, refused(Exposure::Mode(0o770))),
            (US, OUR_GROUP, 0o775, refused(Exposure::Mode(0o775))),
            (US, OUR_GROUP, 0o1777, refused(Exposure::Mode(0o1777))),
            (ROOT, OUR_GROUP, 0o2777, refused(Exposure::Mode(0o2777))),
            (ROOT, OUR_GROUP, 0o2772, refused(Exposure::Mode(0o2772))),
            (
                ROOT,
                THEIR_GROUP,
                0o2770,
                refused(Exposure::Group { mode: 0o2770, group: THEIR_GROUP }),
            ),
            (THEM, OUR_GROUP, 0o2770, refused(Exposure::Owner { owner: THEM, user: US })),
        ] {
            let folder = access(owner, group, mode);
            assert_eq!(
                Rule::OthersOnlyRead.judge(folder, folder, &process()),
                expected,
                "{owner} {group} {mode:o}"
            );
            // Only an accepted folder that is shared relaxes the rule for the files in it.
            let file = Rule::Private.judge(access(US, group, 0o660), folder, &process());
            assert_eq!(
                file.is_ok(),
                mode & 0o2020 == 0o2020 && expected.is_ok(),
                "{owner} {group} {mode:o}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_file_the_reason_and_the_remedy() {
        let message = |role, exposure| Exposed { role, path: "/data".into(), exposure }.to_string();
        assert_eq!(
            message(Role::Folder, Exposure::Mode(0o777)),
            "folder /data has mode 0777, so others can change it: run `chmod go-w /data`, or \
             configure a folder inside it, which is then created for this user alone"
        );
        assert_eq!(
            message(Role::Database, Exposure::Mode(0o644)),
            "database file /data has mode 0644, so others can read it: run `chmod 600 /data`"
        );
        assert_eq!(
            message(Role::MasterKey, Exposure::Group { mode: 0o640, group: 7 }),
            "master key file /data has mode 0640, so others can read it: this process is not in \
             group 7: run `chmod 600 /data`"
        );
        assert_eq!(
            message(Role::Database, Exposure::Owner { owner: 7, user: 0 }),
            "database file /data belongs to user 7, who can read and change it, and this process \
             is user 0: run `chown 0 /data`"
        );
    }
}
