//! `[keys]`: the master keys, and how keys rotate.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::{ConfigError, invalid, unknown_word};
use crate::domain::{
    key::KeyAlgorithm,
    revocation::RETENTION_MARGIN,
    rotation::{MOST_KEYS, RotationRules},
    time::brief,
};

/// The environment variable with the master key, in base64. It is not a setting, and never shown.
pub const MASTER_KEY_VARIABLE: &str = "COUNTERSIGN_MASTER_KEY";
/// The environment variable with the additional master key.
pub const ADDITIONAL_MASTER_KEY_VARIABLE: &str = "COUNTERSIGN_ADDITIONAL_MASTER_KEY";
/// The name of the master key among the credentials that systemd gives to a service.
const CREDENTIAL: &str = "countersign.master_key";

/// The section before it is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    master_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_master_key_file: Option<PathBuf>,
    algorithm: String,
    #[serde(with = "super::span")]
    rotation: Duration,
    #[serde(with = "super::span")]
    refresh_rotation: Duration,
    #[serde(with = "super::span")]
    publish_ahead: Duration,
    #[serde(with = "super::span")]
    jwks_max_age: Duration,
}

const DAY: Duration = Duration::from_secs(86_400);

impl Default for RawKeys {
    fn default() -> Self {
        Self {
            master_key_file: None,
            additional_master_key_file: None,
            algorithm: KeyAlgorithm::EdDsa.as_str().to_owned(),
            rotation: DAY * 30,
            refresh_rotation: DAY * 90,
            publish_ahead: Duration::from_secs(3600),
            jwks_max_age: Duration::from_secs(300),
        }
    }
}

/// The source of a master key.
#[derive(Clone)]
pub enum MasterKeySource {
    /// A file that a setting names.
    File(PathBuf),
    /// A file in the data directory, which is used if no other source is set.
    DefaultFile(PathBuf),
    /// A file that systemd gives to the service as a credential.
    Credential(PathBuf),
    /// The environment: the name of the variable and its value.
    Environment(&'static str, Zeroizing<String>),
}

impl fmt::Debug for MasterKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::DefaultFile(path) => f.debug_tuple("DefaultFile").field(path).finish(),
            Self::Credential(path) => f.debug_tuple("Credential").field(path).finish(),
            Self::Environment(name, _) => f.debug_tuple("Environment").field(name).finish(),
        }
    }
}

/// The section, checked.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The master key, which seals all new keys.
    pub master: MasterKeySource,
    /// Another master key, under which some keys may still be sealed.
    pub additional_master: Option<MasterKeySource>,
    /// The rotation of the keys that sign access tokens.
    pub signing: RotationRules,
    /// The rotation of the keys of refresh tokens.
    pub refresh: RotationRules,
    /// The time for which a verifier may cache the public keys.
    pub jwks_max_age: Duration,
}

/// The values of the environment variables that hold a master key, or name the folder that contains
/// one.
pub struct Environment {
    master: Option<String>,
    additional: Option<String>,
    credentials: Option<OsString>,
}

impl Environment {
    /// Reads the environment of this process.
    pub fn read() -> Self {
        // A value that is not UTF-8 is not base64 either, and is refused when it is decoded.
        let text = |name| {
            env::var_os(name)
                .map(|text| text.to_string_lossy().into_owned())
                .filter(|text| !text.is_empty())
        };
        Self {
            master: text(MASTER_KEY_VARIABLE),
            additional: text(ADDITIONAL_MASTER_KEY_VARIABLE),
            credentials: env::var_os("CREDENTIALS_DIRECTORY"),
        }
    }
}

/// The rotation of one kind of keys.
struct Schedule {
    /// The name of the setting that contains `interval`.
    setting: &'static str,
    algorithm: KeyAlgorithm,
    interval: Duration,
    /// The time for which a key is needed after the next one has replaced it.
    needed_for: Duration,
    /// The name of the setting that determines `needed_for`.
    needed_by: &'static str,
}

impl RawKeys {
    /// Returns this section with the settings of `read` that can change without a restart.
    pub fn reloaded(&self, read: &Self) -> Self {
        Self {
            // The keys are opened with the master keys when the service starts.
            master_key_file: self.master_key_file.clone(),
            additional_master_key_file: self.additional_master_key_file.clone(),
            ..read.clone()
        }
    }

    /// Checks the section. `spreads_within` is the longest time until every replica knows of a key.
    /// `longest_token` is the longest lifetime of an access token. `longest_replay` is the longest
    /// time for which a previous refresh token is accepted.
    pub fn check(
        &mut self,
        environment: Environment,
        data_dir: &Path,
        spreads_within: Duration,
        longest_token: Duration,
        longest_replay: Duration,
    ) -> Result<Keys, ConfigError> {
        let algorithm = self.signing_algorithm()?;
        self.check_publication(spreads_within)?;
        let rules = |schedule| self.rotation_rules(schedule, spreads_within);
        let signing = rules(Schedule {
            setting: "keys.rotation",
            algorithm,
            interval: self.rotation,
            needed_for: longest_token,
            needed_by: "tokens.max_access_token_ttl",
        })?;
        let refresh = rules(Schedule {
            setting: "keys.refresh_rotation",
            algorithm: KeyAlgorithm::Hs256,
            interval: self.refresh_rotation,
            // A replay presents the previous refresh token, whose key may be older than the one
            // that the session uses now.
            needed_for: longest_token.max(longest_replay),
            needed_by: "policies.NAME.replay_limit",
        })?;
        let (master, additional_master) = self.master_keys(environment, data_dir)?;
        if let MasterKeySource::DefaultFile(path) = &master {
            self.master_key_file = Some(path.clone());
        }
        Ok(Keys { master, additional_master, signing, refresh, jwks_max_age: self.jwks_max_age })
    }

    fn signing_algorithm(&self) -> Result<KeyAlgorithm, ConfigError> {
        KeyAlgorithm::from_name(&self.algorithm)
            .filter(|algorithm| KeyAlgorithm::SIGNING.contains(algorithm))
            .ok_or_else(|| {
                unknown_word(
                    "keys.algorithm",
                    &self.algorithm,
                    &KeyAlgorithm::SIGNING.map(KeyAlgorithm::as_str),
                )
            })
    }

    /// Checks that a key is published so early that every verifier and every replica knows the key
    /// before it is used.
    fn check_publication(&self, spreads_within: Duration) -> Result<(), ConfigError> {
        let needed = self.jwks_max_age.saturating_add(spreads_within);
        if self.publish_ahead < needed {
            let problem = format!(
                "must be at least {}, the sum of keys.jwks_max_age and the {} until every replica \
                 knows of a key",
                rounded_up(needed),
                rounded_up(spreads_within)
            );
            return Err(invalid("keys.publish_ahead", problem));
        }
        if self.jwks_max_age < Duration::from_secs(1) {
            return Err(invalid("keys.jwks_max_age", "must be at least 1s"));
        }
        Ok(())
    }

    fn rotation_rules(
        &self,
        schedule: Schedule,
        spreads_within: Duration,
    ) -> Result<RotationRules, ConfigError> {
        let Schedule { setting, algorithm, interval, needed_for, needed_by } = schedule;
        // Scheduled rotations may fill half of the ring. The other half is left for rotations by
        // hand.
        let most = u32::try_from(MOST_KEYS / 2).unwrap_or(u32::MAX);
        let kept_for =
            needed_for.saturating_add(RETENTION_MARGIN * 2).saturating_add(spreads_within);
        let shortest = (kept_for / most).max(self.publish_ahead.saturating_add(spreads_within));
        if !interval.is_zero() && interval < shortest {
            let problem = format!(
                "must be at least {} with this keys.publish_ahead and {needed_by}, or 0s for never",
                rounded_up(shortest),
            );
            return Err(invalid(setting, problem));
        }
        Ok(RotationRules {
            algorithm,
            interval,
            publish_ahead: self.publish_ahead,
            spreads_within,
            kept_for,
        })
    }

    /// Finds the source of the master key, and of the additional master key if there is one.
    fn master_keys(
        &self,
        environment: Environment,
        data_dir: &Path,
    ) -> Result<(MasterKeySource, Option<MasterKeySource>), ConfigError> {
        let credential = environment.credentials.map(|folder| Path::new(&folder).join(CREDENTIAL));
        let master = match (&self.master_key_file, environment.master) {
            (Some(_), Some(_)) => {
                let problem = format!(
                    "{MASTER_KEY_VARIABLE} holds a master key too: set only one of the two"
                );
                return Err(invalid("keys.master_key_file", problem));
            }
            (Some(path), None) => MasterKeySource::File(path.clone()),
            (None, Some(text)) => MasterKeySource::Environment(MASTER_KEY_VARIABLE, text.into()),
            (None, None) => match credential.filter(|path| path.exists()) {
                Some(path) => MasterKeySource::Credential(path),
                None => MasterKeySource::DefaultFile(data_dir.join("master.key")),
            },
        };
        let additional_master = match (&self.additional_master_key_file, environment.additional) {
            (Some(path), _) => Some(MasterKeySource::File(path.clone())),
            (None, text) => text.map(|text| {
                MasterKeySource::Environment(ADDITIONAL_MASTER_KEY_VARIABLE, text.into())
            }),
        };
        Ok((master, additional_master))
    }
}

/// Returns a span in whole milliseconds, rounded up, so that a user can copy it as a minimum.
fn rounded_up(span: Duration) -> String {
    let millis = span.as_micros().div_ceil(1000);
    brief(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
}
