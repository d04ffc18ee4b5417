//! Checks who may read and change a file, by its owner and mode. All such checks are here;
//! docs/operations.md has a table of the rules.

use std::{fmt, path::PathBuf};

/// The owner and mode of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The user id of its owner.
    pub owner: u32,
    /// Its mode. Only the permission bits matter.
    pub mode: u32,
}

/// The access that a file may give to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nobody else may read or change it, because it holds a secret.
    Private,
    /// Its group may read it, because secrets mounted into containers need that, and any user may
    /// own it, because the tool that renews it may run as another user.
    PrivateToGroup,
    /// Others may read it, but nobody else may change it.
    OthersOnlyRead,
}

/// The reason why a file breaks its rule. It displays as the rest of a sentence that starts with
/// the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// It belongs to another user, who can change it whatever its mode says.
    Owner {
        /// The id of that user.
        owner: u32,
        /// The id of the user that runs this process.
        user: u32,
    },
    /// Its mode lets others read or change it.
    Mode(u32),
}

const PERMISSIONS: u32 = 0o7777;
const ROOT: u32 = 0;

impl Rule {
    /// The mode bits that must not be set.
    const fn forbidden(self) -> u32 {
        match self {
            Self::Private => 0o077,
            Self::PrivateToGroup => 0o027,
            Self::OthersOnlyRead => 0o022,
        }
    }

    /// Checks a file for a process that runs as `user`. Root may own any file, because it can read
    /// and change all files anyway.
    pub fn judge(self, access: Access, user: u32) -> Result<(), Exposure> {
        let Access { owner, mode } = access;
        if self != Self::PrivateToGroup && owner != user && owner != ROOT {
            return Err(Exposure::Owner { owner, user });
        }
        match mode & self.forbidden() {
            0 => Ok(()),
            _ => Err(Exposure::Mode(mode & PERMISSIONS)),
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { owner, user } => {
                write!(f, "belongs to user {owner}, who can read and change it, and this process is user {user}")
            }
            Self::Mode(mode) if mode & 0o022 == 0 => write!(f, "has mode {mode:04o}, so others can read it"),
            Self::Mode(mode) => write!(f, "has mode {mode:04o}, so others can change it"),
        }
    }
}

impl Exposure {
    /// The command, without its path, that makes the file private.
    pub fn command(self) -> String {
        match self {
            Self::Owner { user, .. } => format!("chown {user}"),
            Self::Mode(_) => "chmod 600".to_owned(),
        }
    }
}

/// The purpose of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The data directory, or the directory that contains the database.
    Folder,
    /// The SQLite database, or its `-wal`, `-shm` or `-journal` file.
    Database,
    /// A master key.
    MasterKey,
}

/// A file or directory of the service that breaks its rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Exposed {
    /// Its purpose.
    pub role: Role,
    /// Its path.
    pub path: PathBuf,
    /// The reason why it breaks its rule.
    pub exposure: Exposure,
}

/// Prints one line with the file, the reason, and the command that helps.
impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let name = match self.role {
            Role::Folder => "folder",
            Role::Database => "database file",
            Role::MasterKey => "master key file",
        };
        write!(f, "{name} {path} {}: ", self.exposure)?;
        match (self.exposure, self.role) {
            (Exposure::Mode(_), Role::Folder) => {
                write!(f, "run `chmod go-w {path}`, or name a folder inside it, which is made for this user alone")
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

    #[test]
    fn each_rule_refuses_what_others_must_not_do() {
        let owned_by_another = |owner| Err(Exposure::Owner { owner, user: US });
        let mode = |mode| Err(Exposure::Mode(mode));
        for (rule, owner, bits, expected) in [
            (Rule::Private, US, 0o600, Ok(())),
            (Rule::Private, US, 0o100_700, Ok(())),
            (Rule::Private, ROOT, 0o400, Ok(())),
            (Rule::Private, US, 0o640, mode(0o640)),
            (Rule::Private, ROOT, 0o604, mode(0o604)),
            (Rule::Private, US, 0o101_601, mode(0o1601)),
            (Rule::Private, THEM, 0o600, owned_by_another(THEM)),
            (Rule::PrivateToGroup, US, 0o640, Ok(())),
            (Rule::PrivateToGroup, THEM, 0o440, Ok(())),
            (Rule::PrivateToGroup, US, 0o660, mode(0o660)),
            (Rule::PrivateToGroup, US, 0o644, mode(0o644)),
            (Rule::OthersOnlyRead, US, 0o755, Ok(())),
            (Rule::OthersOnlyRead, ROOT, 0o700, Ok(())),
            (Rule::OthersOnlyRead, US, 0o770, mode(0o770)),
            (Rule::OthersOnlyRead, US, 0o1777, mode(0o1777)),
            (Rule::OthersOnlyRead, THEM, 0o700, owned_by_another(THEM)),
        ] {
            assert_eq!(rule.judge(Access { owner, mode: bits }, US), expected, "{rule:?} {owner} {bits:o}");
        }
        // A process of root is refused the files of other users too.
        let refused = Rule::Private.judge(Access { owner: US, mode: 0o600 }, ROOT);
        assert_eq!(refused, Err(Exposure::Owner { owner: US, user: ROOT }));
    }

    #[test]
    fn a_refusal_names_the_file_the_reason_and_the_way_out() {
        let told = |role, exposure| Exposed { role, path: "/data".into(), exposure }.to_string();
        assert_eq!(
            told(Role::Folder, Exposure::Mode(0o777)),
            "folder /data has mode 0777, so others can change it: run `chmod go-w /data`, or name a folder inside it, \
             which is made for this user alone"
        );
        assert_eq!(
            told(Role::Database, Exposure::Mode(0o644)),
            "database file /data has mode 0644, so others can read it: run `chmod 600 /data`"
        );
        assert_eq!(
            told(Role::Database, Exposure::Owner { owner: 7, user: 0 }),
            "database file /data belongs to user 7, who can read and change it, and this process is user 0: run \
             `chown 0 /data`"
        );
    }
}
