//! Reads the master keys and opens the key ring. This file also has the commands that change the
//! ring in the database without a running service: importing a key, and sealing all keys anew.

use std::{path::Path, sync::Arc};

use super::{
    AppError, System,
    audit::{CommandAudit, by_command},
    database,
};
use crate::{
    authority::audit::Audit,
    config::{Config, keys::MasterKeySource},
    domain::{
        audit::{AuditAction, AuditRecord},
        key::{Key, KeyState},
        time::Timestamp,
        who::Who,
    },
    keys::{
        generate,
        keeper::Keeper,
        master_key::{self, MasterKeyError},
        pair::SigningPair,
        private_file,
        ring::{KeyRing, RingError},
        sealing::{MasterKey, MasterKeys},
    },
    store::{
        Store,
        ring::{RingChange, SealedRing},
    },
};

/// The setting that names the file with the master key.
const MASTER_KEY_FILE: &str = "keys.master_key_file";
/// The setting that names the file with the additional master key.
const ADDITIONAL_MASTER_KEY_FILE: &str = "keys.additional_master_key_file";

/// Reads a master key; `None` if its file does not exist.
fn read_master_key(
    setting: &'static str,
    source: &MasterKeySource,
) -> Result<Option<MasterKey>, AppError> {
    let in_file = |error| AppError::MasterKeyFile { setting, error };
    match source {
        MasterKeySource::File(path) | MasterKeySource::DefaultFile(path) => {
            master_key::read_file(path).map_err(in_file)
        }
        MasterKeySource::Credential(path) => Ok(Some(master_key::read_credential(path)?)),
        MasterKeySource::Environment(name, text) => {
            Ok(Some(master_key::from_variable(name, text)?))
        }
    }
}

/// Fails if `keys.master_key_file` names a file that does not exist. The file is not created,
/// because after a typing error the new key would be where nobody looks for it.
pub fn require_master_key(config: &Config) -> Result<(), AppError> {
    match &config.keys.master {
        MasterKeySource::File(path) if !path.exists() => {
            Err(AppError::NoMasterKeyFile(path.clone()))
        }
        _ => Ok(()),
    }
}

/// The master keys that were found.
pub struct Masters {
    current: Option<MasterKey>,
    additional: Option<MasterKey>,
}

impl Masters {
    /// Reads the master keys. A default file may be missing.
    pub fn read(config: &Config) -> Result<Self, AppError> {
        let current = read_master_key(MASTER_KEY_FILE, &config.keys.master)?;
        let additional = match &config.keys.additional_master {
            Some(source) => read_master_key(ADDITIONAL_MASTER_KEY_FILE, source)?,
            None => None,
        };
        match &config.keys.additional_master {
            Some(MasterKeySource::File(path)) if additional.is_none() => {
                Err(AppError::NoAdditionalMasterKeyFile(path.clone()))
            }
            _ => Ok(Self { current, additional }),
        }
    }
}

/// Opens the key ring, and creates the first keys of a new database. The caller reads the master
/// keys before it opens the database, so that the database is left as it was if a master key cannot
/// be read.
pub async fn open_keeper(
    config: &Config,
    masters: Masters,
    store: &dyn Store,
    system: &System,
    audit: &Audit,
) -> Result<Keeper, AppError> {
    let mut ring = store.ring().await?;
    let is_new = ring.keys.is_empty() && ring.damaged.is_empty();
    let current = match (masters.current, &config.keys.master) {
        (Some(current), _) => current,
        (None, MasterKeySource::DefaultFile(path)) if is_new && config.database.is_shared() => {
            return Err(AppError::MasterKeyMissing { path: path.clone() });
        }
        (None, MasterKeySource::DefaultFile(path)) if is_new => {
            let master = master_key::create(path, &*system.rng)?;
            tracing::info!(file = %path.display(), "made a master key: back it up, without it the \
                                                    database is useless");
            master
        }
        (None, source) => return Err(missing_master_key(source)),
    };
    let masters = MasterKeys { current, additional: masters.additional };
    if is_new {
        let now = system.clock.now();
        let first =
            generate::first(&masters.current, &*system.rng, config.keys.signing.algorithm, now)?;
        let keys: Vec<Key> = first.iter().map(|sealed| sealed.key.clone()).collect();
        // If another process was faster, this changes nothing, and the keys of that process are
        // read below.
        let change = RingChange { version: ring.version, put: first, drop: vec![] };
        if store.change_ring(change).await?.is_some() {
            for key in keys {
                let action = AuditAction::of_key(key.state());
                let record = AuditRecord::new(action, now, Who::Service, None);
                audit.record(record.about_key(&key.kid));
            }
        }
        ring = store.ring().await?;
    }
    let ring = KeyRing::open(&masters, ring)?;
    Ok(Keeper::new(masters, ring))
}

/// Returns the error for a master key that is missing although it is needed.
fn missing_master_key(source: &MasterKeySource) -> AppError {
    match source {
        MasterKeySource::File(path) => AppError::NoMasterKeyFile(path.clone()),
        MasterKeySource::DefaultFile(path) | MasterKeySource::Credential(path) => {
            AppError::MasterKeyGone(path.clone())
        }
        MasterKeySource::Environment(name, _) => MasterKeyError::NotInVariable(name).into(),
    }
}

/// Opens the key ring, and creates neither a master key nor keys. Returns `None` if the database
/// has no keys yet.
pub fn open_ring(
    config: &Config,
    masters: Masters,
    ring: SealedRing,
) -> Result<Option<KeyRing>, AppError> {
    if ring.keys.is_empty() && ring.damaged.is_empty() {
        return Ok(None);
    }
    let current = masters.current.ok_or_else(|| missing_master_key(&config.keys.master))?;
    let masters = MasterKeys { current, additional: masters.additional };
    Ok(Some(KeyRing::open(&masters, ring)?))
}

/// Opens a database that exists, and checks that all its keys can be opened by these master keys.
async fn open(
    config: &Config,
    system: &System,
) -> Result<(Arc<dyn Store>, MasterKeys, CommandAudit), AppError> {
    database::require_database(config)?;
    require_master_key(config)?;
    let masters = Masters::read(config)?;
    let store = database::open_store(config).await?;
    let audit = CommandAudit::open(config, system, &store)?;
    let keeper = open_keeper(config, masters, &*store, system, audit.log()).await?;
    Ok((store, keeper.into_masters(), audit))
}

/// Returns a record of a change of a key.
pub fn about_key(action: AuditAction, kid: &str, at: Timestamp) -> AuditRecord {
    by_command(action, at).about_key(kid)
}

/// Imports a private key that was made elsewhere. It replaces the pending key for access tokens.
pub async fn import_key(config: &Config, file: &Path, system: System) -> Result<Key, AppError> {
    let refused = |problem: String| AppError::NotImported { path: file.to_owned(), problem };
    let pem = private_file::read(file).map_err(|error| refused(error.to_string()))?;
    let (pair, secret) = SigningPair::from_pem(&pem).map_err(|error| refused(error.to_string()))?;
    let wanted = config.keys.signing.algorithm;
    if pair.algorithm() != wanted {
        let problem = format!(
            "it is a key for {0}; keys.algorithm is {wanted}: set it to {0} first",
            pair.algorithm()
        );
        return Err(refused(problem));
    }
    let kid = generate::name(&pair).ok_or_else(|| refused("it has no name".to_owned()))?;
    let (store, masters, mut audit) = open(config, &system).await?;
    loop {
        let ring = store.ring().await?;
        let keys = || ring.keys.iter().map(|sealed| &sealed.key);
        if let Some(there) = keys().find(|key| key.kid == kid) {
            return Err(refused(format!("key {kid} is there already, {}", there.state().as_str())));
        }
        let waiting = keys()
            .filter(|key| key.purpose() == wanted.purpose() && key.state() == KeyState::Pending);
        let drop: Vec<String> = waiting.map(|key| key.kid.clone()).collect();
        let key = Key::new(kid.clone(), wanted, system.clock.now());
        let sealed =
            masters.current.seal(&*system.rng, key.clone(), &secret).map_err(RingError::from)?;
        let change = RingChange { version: ring.version, put: vec![sealed], drop: drop.clone() };
        if store.change_ring(change).await?.is_some() {
            let now = system.clock.now();
            audit.record(about_key(AuditAction::KeyImported, &key.kid, now)).await;
            for kid in drop {
                audit.record(about_key(AuditAction::KeyDropped, &kid, now)).await;
            }
            return Ok(key);
        }
    }
}

/// Seals anew all keys that are not sealed under the current master key. Each key is written in a
/// change of its own, so that the command can be interrupted and repeated. Returns the number of
/// keys that were sealed anew.
pub async fn reseal(config: &Config, system: System) -> Result<usize, AppError> {
    let (store, masters, mut audit) = open(config, &system).await?;
    let mut resealed = 0;
    'ring: loop {
        let ring = store.ring().await?;
        for key in &ring.keys {
            if let Some(new) = masters.reseal(&*system.rng, key).map_err(RingError::from)? {
                let change = RingChange { version: ring.version, put: vec![new], drop: vec![] };
                if store.change_ring(change).await?.is_some() {
                    resealed += 1;
                    audit
                        .record(about_key(
                            AuditAction::KeyResealed,
                            &key.key.kid,
                            system.clock.now(),
                        ))
                        .await;
                }
                // The ring has a new version now, and the next change must be based on that
                // version.
                continue 'ring;
            }
        }
        return Ok(resealed);
    }
}
