//! The configuration. Flags take precedence over the environment, the environment over the file,
//! and the file over the defaults. All of it is checked before anything is opened.

pub mod audit;
pub mod callers;
pub mod database;
pub mod error;
mod file;
pub mod gateway;
pub mod keys;
pub mod lease;
pub mod limits;
pub mod log;
pub mod otlp;
mod path;
pub mod policies;
mod print;
pub mod replica;
pub mod rules;
mod section;
pub mod server;
mod service_link;
mod span;
pub mod sweeper;
pub mod tls;
pub mod tokens;
mod watch;
mod word;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment,
    providers::{Env, Serialized},
};
use serde::{Deserialize, Serialize};

use crate::{
    callers::Registration,
    domain::lease::{LeaseConfig, WatchConfig},
};

use self::{
    audit::Audit,
    callers::RawCaller,
    database::{Database, DatabaseUrl, Password},
    error::{ConfigError, invalid},
    file::ConfigFile,
    gateway::RawGateway,
    keys::{Keys, RawKeys},
    lease::RawLease,
    limits::Limits,
    log::Log,
    otlp::{Collector, OtlpSection},
    policies::{Policies, RawPolicy},
    replica::{RawReplica, Replica},
    rules::{Clients, RawRules, RawTenant, Tenants},
    server::{GRPC_ADDRESS, HTTP_ADDRESS, Listen, Protection, Shutdown},
    sweeper::{RawSweeper, Sweeper},
    tls::{RawTls, Tls},
    tokens::{RawTokens, Tokens},
    watch::RawWatch,
};

/// The default data directory, relative to the working directory.
const DATA_DIR: &str = "countersign-data";

/// The prefix of the environment variables. Two underscores separate a section from its setting.
pub const ENV_PREFIX: &str = "COUNTERSIGN_";

/// Returns whether an environment variable is a setting. `name` is its name without the prefix. The
/// variables with the prefix that are not settings give defaults of flags (such as `CONFIG` and
/// `SERVER`), hold secrets, or are service links of Kubernetes.
fn is_setting(name: &str, value: Option<&str>) -> bool {
    let name = name.to_ascii_lowercase();
    let flag = [
        "config",
        "server",
        "ca_file",
        "api_key_file",
        "client_certificate_file",
        "client_key_file",
    ];
    let flag = flag.contains(&name.as_str());
    let secret = ["master_key", "additional_master_key", "api_key"].contains(&name.as_str());
    !flag && !secret && !service_link::is_link(&name, value)
}

/// Returns the value of an environment variable. `name` is its name without the prefix and in lower
/// case, which is how figment passes it. The variable itself may be written in any case.
fn value_of(name: &str) -> Option<String> {
    let variable = format!("{ENV_PREFIX}{name}");
    let mut variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let (_, value) = variables.find(|(name, _)| name.eq_ignore_ascii_case(&variable))?;
    value.into_string().ok()
}

/// All settings, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The `iss` of access tokens.
    pub issuer: String,
    /// The address of the gRPC port.
    pub listen: Listen,
    /// The address of the HTTP port; `None` if there is no HTTP port.
    pub http_listen: Option<Listen>,
    /// True if API keys and tokens may be sent to the HTTP port: it listens on loopback alone, or
    /// is encrypted, or the risk is accepted by `insecure`.
    pub http_is_private: bool,
    /// True if the gRPC port offers server reflection.
    pub reflection: bool,
    /// The certificate and the rules for client certificates; `None` if nothing is encrypted.
    pub tls: Option<Tls>,
    /// The callers that are known. If there are none, anybody may call.
    pub callers: Vec<Registration>,
    /// The limits of connections and calls.
    pub limits: Limits,
    /// The settings by which requests of gateways are answered.
    pub gateway: crate::gateway::Settings,
    /// The folder for the database, the master key and the lock.
    pub data_dir: PathBuf,
    /// The database to use.
    pub database: DatabaseUrl,
    /// The settings of connections to the database.
    pub database_options: Database,
    /// The password of the database from the environment.
    pub database_password: Option<Password>,
    /// The master keys, and how keys rotate.
    pub keys: Keys,
    /// The settings of all access tokens.
    pub tokens: Tokens,
    /// The policies of sessions.
    pub policies: Policies,
    /// The rules of the tenants for which rules are configured.
    pub tenants: Tenants,
    /// The rules of the clients for which rules are configured.
    pub clients: Clients,
    /// The duration of leases, and the tolerances for clocks.
    pub lease: LeaseConfig,
    /// The settings of watchers.
    pub watch: WatchConfig,
    /// The name of this replica.
    pub replica: Replica,
    /// The most entries that the blacklist may have.
    pub max_blacklist_entries: usize,
    /// The schedule and the limits of the sweeper.
    pub sweeper: Sweeper,
    /// The settings of the audit table.
    pub audit: Audit,
    /// The time limits of a shutdown.
    pub shutdown: Shutdown,
    /// The level and the format of the log.
    pub log: Log,
    /// The collector of traces and metrics, if there is one.
    pub otlp: Option<Collector>,
    /// All settings in force, including those that are derived from others.
    effective: RawConfig,
    /// The settings in force without those that are derived.
    written: RawConfig,
    /// The file and the flags from which this was loaded.
    source: (Option<PathBuf>, Flags),
}

/// The settings before they are checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    issuer: String,
    listen: String,
    http_listen: String,
    insecure: bool,
    #[serde(deserialize_with = "section::read_choice")]
    reflection: Reflection,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database_url: Option<String>,
    #[serde(deserialize_with = "section::read")]
    tls: RawTls,
    #[serde(deserialize_with = "section::read")]
    limits: Limits,
    #[serde(deserialize_with = "section::read")]
    gateway: RawGateway,
    #[serde(deserialize_with = "section::read")]
    database: Database,
    #[serde(deserialize_with = "section::read")]
    tokens: RawTokens,
    #[serde(deserialize_with = "section::read_named")]
    policies: BTreeMap<String, RawPolicy>,
    #[serde(deserialize_with = "section::read_named")]
    tenants: BTreeMap<String, RawTenant>,
    #[serde(deserialize_with = "section::read_named")]
    clients: BTreeMap<String, RawRules>,
    #[serde(deserialize_with = "section::read")]
    blacklist: RawBlacklist,
    #[serde(deserialize_with = "section::read")]
    lease: RawLease,
    #[serde(deserialize_with = "section::read")]
    watch: RawWatch,
    #[serde(deserialize_with = "section::read")]
    replica: RawReplica,
    #[serde(deserialize_with = "section::read")]
    sweeper: RawSweeper,
    #[serde(deserialize_with = "section::read")]
    keys: RawKeys,
    #[serde(deserialize_with = "section::read")]
    audit: Audit,
    #[serde(deserialize_with = "section::read")]
    shutdown: Shutdown,
    #[serde(deserialize_with = "section::read")]
    log: Log,
    #[serde(deserialize_with = "section::read")]
    otlp: OtlpSection,
    #[serde(deserialize_with = "section::read_list")]
    callers: Vec<RawCaller>,
}

/// The values of `reflection`, which says whether the gRPC port offers server reflection.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Reflection {
    /// Offered if gRPC listens on loopback.
    #[default]
    Auto,
    /// Offered to every known caller.
    On,
    /// Not offered.
    Off,
}

impl Reflection {
    fn is_offered(self, listen: &Listen) -> bool {
        match self {
            Self::Auto => listen.address.ip().is_loopback(),
            Self::On => true,
            Self::Off => false,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct RawBlacklist {
    max_entries: usize,
}

impl Default for RawBlacklist {
    fn default() -> Self {
        Self { max_entries: 10_000_000 }
    }
}

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            issuer: format!("http://{HTTP_ADDRESS}"),
            listen: GRPC_ADDRESS.to_owned(),
            http_listen: HTTP_ADDRESS.to_owned(),
            insecure: false,
            reflection: Reflection::Auto,
            tls: RawTls::default(),
            limits: Limits::default(),
            gateway: RawGateway::default(),
            data_dir: None,
            database_url: None,
            database: Database::default(),
            tokens: RawTokens::default(),
            policies: BTreeMap::new(),
            tenants: BTreeMap::new(),
            clients: BTreeMap::new(),
            blacklist: RawBlacklist::default(),
            lease: RawLease::default(),
            watch: RawWatch::default(),
            replica: RawReplica::default(),
            sweeper: RawSweeper::default(),
            keys: RawKeys::default(),
            audit: Audit::default(),
            shutdown: Shutdown::default(),
            log: Log::default(),
            otlp: OtlpSection::default(),
            callers: vec![],
        }
    }
}

impl RawBlacklist {
    fn check(&self) -> Result<(), ConfigError> {
        if self.max_entries == 0 {
            return Err(invalid("blacklist.max_entries", "must be at least 1"));
        }
        Ok(())
    }
}

impl RawConfig {
    /// Returns these settings with the values that `read` has for those that can change without a
    /// restart. The two patterns name every setting or section, so that the compiler asks for a
    /// decision about each new one.
    fn reloaded(&self, read: &Self) -> Self {
        let Self {
            // These settings can change without a restart.
            gateway,
            policies,
            tenants,
            clients,
            blacklist,
            sweeper,
            shutdown,
            callers,
            // Some settings of these sections can.
            limits,
            tokens,
            keys,
            audit,
            log,
            // These settings are used when the service starts.
            issuer: _,
            listen: _,
            http_listen: _,
            insecure: _,
            reflection: _,
            data_dir: _,
            database_url: _,
            tls: _,
            database: _,
            lease: _,
            watch: _,
            replica: _,
            otlp: _,
        } = read.clone();
        Self {
            gateway,
            policies,
            tenants,
            clients,
            blacklist,
            sweeper,
            shutdown,
            callers,
            limits: self.limits.reloaded(&limits),
            tokens: self.tokens.reloaded(&tokens),
            keys: self.keys.reloaded(&keys),
            audit: self.audit.reloaded(&audit),
            log: self.log.reloaded(&log),
            ..self.clone()
        }
    }

    /// Returns whether API keys and tokens may be sent to the HTTP port
    /// ([`Config::http_is_private`]).
    fn is_http_private(&self, listen: Option<&Listen>, tls: Option<&Tls>) -> bool {
        listen.is_none_or(|listen| listen.address.ip().is_loopback())
            || self.insecure
            || tls.is_some_and(|tls| tls.http)
    }

    fn check_keys(
        &mut self,
        data_dir: &Path,
        database: &DatabaseUrl,
        lease: &LeaseConfig,
        tokens: &Tokens,
        policies: &Policies,
    ) -> Result<Keys, ConfigError> {
        // The longest time until every replica knows of a new key. The clocks of two replicas may
        // differ by twice the skew, so this much is added.
        let spreads_within = match database.is_shared() {
            true => lease.max_validity().saturating_add(lease.max_clock_skew.saturating_mul(2)),
            false => Duration::ZERO,
        };
        self.keys.check(
            keys::Environment::read(),
            data_dir,
            spreads_within,
            tokens.max_access_token_ttl,
            policies::longest_replay(policies),
        )
    }

    /// Checks the sections that are used as they are.
    fn check_sections(&self) -> Result<(), ConfigError> {
        self.audit.check()?;
        self.log.filter()?;
        self.blacklist.check()
    }

    /// Fills in the settings that were not given, and are derived from others.
    fn set_derived(
        &mut self,
        data_dir: &Path,
        tokens: &Tokens,
        policies: &Policies,
        database: &DatabaseUrl,
    ) {
        self.data_dir = Some(data_dir.to_owned());
        self.tokens.default_audience = Some(tokens.default_audience.to_string());
        self.policies = policies::effective(&self.policies, policies);
        self.database_url = Some(database.to_string());
    }
}

/// The settings given as flags. A flag that is not given is not serialized, so that it overrides
/// nothing.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Flags {
    /// `--listen`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// `--http-listen`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_listen: Option<String>,
    /// `--database-url`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<String>,
    /// `--data-dir`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// `--insecure`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
    /// `--no-migrate`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseFlags>,
}

/// The flags that set values of the section `[database]`.
#[derive(Clone, Debug, Serialize)]
pub struct DatabaseFlags {
    /// `--no-migrate`
    pub migrate: bool,
}

impl Config {
    /// Reads and checks all settings.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        if let Some(path) = file {
            figment = figment.merge(ConfigFile::read(path)?);
        }
        let environment = Env::prefixed(ENV_PREFIX).filter(|name| {
            let value = value_of(name.as_str());
            is_setting(name.as_str(), value.as_deref())
        });
        let environment = environment.split("__");
        let figment = figment.merge(environment).merge(Serialized::globals(flags));
        Self::check(figment.extract()?, (file.map(Path::to_owned), flags.clone()))
    }

    /// Checks the text of a configuration file, as if the file were in the working directory.
    /// Environment variables and flags are not read. [`Self::read_again`] cannot read this text
    /// again.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::check(
            Figment::from(ConfigFile::from_text(text)?).extract()?,
            (None, Flags::default()),
        )
    }

    /// Reads and checks all settings again, from the same file and with the same flags.
    pub fn read_again(&self) -> Result<Self, ConfigError> {
        let (file, flags) = &self.source;
        Self::load(file.as_deref(), flags)
    }

    /// Returns the settings whose values are not those of another configuration, by name, with
    /// their values in this one. If a setting that others are derived from differs, the derived
    /// ones differ too.
    pub fn differences(&self, other: &Self) -> BTreeMap<String, SettingValue> {
        let [this, that] = [self, other].map(|config| {
            // Serializing settings that were read before does not fail.
            toml::Table::try_from(&config.effective).unwrap_or_default()
        });
        let mut differences = BTreeMap::new();
        add_differences("", &this, &that, &mut differences);
        if self.database != other.database {
            // The two URLs may differ only in the password, which `effective` does not contain.
            differences.insert("database_url".to_owned(), SettingValue(None));
        }
        differences
    }

    /// Returns the configuration that is in force after `read` was read while this one was in
    /// force: settings that can change without a restart have the values in `read`, and all others
    /// keep theirs. Fails if the two kinds contradict each other.
    pub fn reloaded(&self, read: &Self) -> Result<Self, ConfigError> {
        let reloaded = self.written.reloaded(&read.written);
        let config = Self::check(reloaded, self.source.clone())?;
        Ok(Self {
            // What was written does not contain the passwords.
            database: self.database.clone(),
            database_password: self.database_password.clone(),
            ..config
        })
    }

    fn check(mut raw: RawConfig, source: (Option<PathBuf>, Flags)) -> Result<Self, ConfigError> {
        check_issuer(&raw.issuer)?;
        raw.limits.check()?;
        let tls = raw.tls.check()?;
        let checks_certificates = tls.as_ref().is_some_and(|tls| tls.files.client_ca.is_some());
        let callers = callers::check(&raw.callers, &raw.limits, checks_certificates)?;
        let protection =
            Protection { tls: tls.is_some(), callers: !callers.is_empty(), insecure: raw.insecure };
        let listen = Listen::grpc(&raw.listen, protection)?;
        let http_listen = Listen::http(&raw.http_listen, protection)?;
        let http_is_private = raw.is_http_private(http_listen.as_ref(), tls.as_ref());
        let reflection = raw.reflection.is_offered(&listen);
        let mut written = raw.clone();
        let data_dir = raw.data_dir.clone().unwrap_or_else(|| PathBuf::from(DATA_DIR));
        let database = database::parse(raw.database_url.as_deref(), &data_dir)?;
        raw.database.check(&database)?;
        let tokens = Tokens::check(&raw.tokens, &raw.issuer)?;
        let policies = policies::check(&raw.policies, &tokens)?;
        let tenants = rules::check_tenants(&raw.tenants, &policies)?;
        let clients = rules::check_clients("clients", &raw.clients, &policies)?;
        let sweeper = Sweeper::check(&raw.sweeper)?;
        let lease = raw.lease.check()?;
        let watch = raw.watch.check(&raw.limits, &lease)?;
        let replica = raw.replica.check(replica::host_name)?;
        let keys = raw.check_keys(&data_dir, &database, &lease, &tokens, &policies)?;
        raw.check_sections()?;
        written.policies = policies::written(&raw.policies, &policies);
        raw.set_derived(&data_dir, &tokens, &policies, &database);
        // `raw` and `written` may be printed, so neither may contain the password.
        written.database_url = written.database_url.and(raw.database_url.clone());
        Ok(Self {
            issuer: raw.issuer.clone(),
            listen,
            http_listen,
            http_is_private,
            reflection,
            tls,
            callers,
            limits: raw.limits.clone(),
            gateway: raw.gateway.check()?,
            data_dir,
            database,
            database_options: raw.database.clone(),
            database_password: Password::from_environment(),
            keys,
            tokens,
            policies,
            tenants,
            clients,
            max_blacklist_entries: raw.blacklist.max_entries,
            lease,
            watch,
            replica,
            sweeper,
            audit: raw.audit.clone(),
            shutdown: raw.shutdown.clone(),
            log: raw.log.clone(),
            otlp: raw.otlp.check()?,
            effective: raw,
            written,
            source,
        })
    }

    /// Returns all settings in force as TOML, without secrets. Derived settings are comments.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let [effective, written] = [&self.effective, &self.written].map(toml::Table::try_from);
        let folder = file::working_directory().unwrap_or_default();
        print::to_toml(&effective?, &written?, &folder)
    }

    /// Returns all settings in force as JSON, without secrets.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::to_value(&self.effective)
    }
}

/// The value of a setting, for people. It is empty if the setting is not set, or holds tables.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingValue(Option<toml::Value>);

impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(toml::Value::Table(_)) | None => Ok(()),
            Some(toml::Value::Array(items)) if items.iter().any(toml::Value::is_table) => Ok(()),
            Some(toml::Value::String(text)) => write!(f, " = {text}"),
            Some(value) => write!(f, " = {value}"),
        }
    }
}

/// Adds the settings that differ between two versions of a section, with their values in the first.
fn add_differences(
    section: &str,
    one: &toml::Table,
    other: &toml::Table,
    differences: &mut BTreeMap<String, SettingValue>,
) {
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    for key in keys {
        let name = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        match (one.get(key), other.get(key)) {
            (one, other) if one == other => {}
            (Some(toml::Value::Table(one)), Some(toml::Value::Table(other))) => {
                add_differences(&name, one, other, differences);
            }
            (value, _) => {
                differences.insert(name, SettingValue(value.cloned()));
            }
        }
    }
}

/// Checks that the issuer is a URL without query and fragment (RFC 8414, section 2).
fn check_issuer(issuer: &str) -> Result<(), ConfigError> {
    let host = issuer.strip_prefix("https://").or_else(|| issuer.strip_prefix("http://"));
    let host =
        host.ok_or_else(|| invalid("issuer", "must start with https:// (or http:// for a trial)"))?;
    let clean = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"' | '\\' | '<' | '>');
    if host.is_empty() || host.starts_with('/') || !host.chars().all(clean) {
        return Err(invalid("issuer", "must be a URL with a host and without query and fragment"));
    }
    if issuer.len() > 256 {
        return Err(invalid("issuer", "must have at most 256 bytes"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
