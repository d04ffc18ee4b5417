//! Compiles the proto files without `protoc`, keeps their descriptors for reflection and JSON, and
//! embeds the migrations.

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use prost::Message;

const PROTOS: [&str; 5] = [
    "countersign/v1/audit_service.proto",
    "countersign/v1/key_service.proto",
    "countersign/v1/revocation_service.proto",
    "countersign/v1/session.proto",
    "countersign/v1/session_service.proto",
];

/// The package of the messages.
const PACKAGE: &str = "countersign.v1";

/// The messages and oneofs whose `Debug` must not show tokens or claims. A oneof is written as
/// `Message.oneof`.
const WITH_SECRETS: [&str; 12] = [
    "Tokens",
    "RefreshRequest",
    "ReauthenticateRequest",
    "ReauthenticateRequest.session",
    "UpdateSessionRequest",
    "ValidateRequest",
    "RevokeRequest",
    "RevokeRequest.target",
    "CreateSessionRequest",
    "ImportedSession",
    "Session",
    "ValidateResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // `embed_migrations!` reads the folder at compile time, and cargo does not know that.
    println!("cargo:rerun-if-changed=migrations");

    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("countersign.descriptors.bin"), descriptors.encode_to_vec())?;
    fs::write(out.join("postgres_migrations.rs"), postgres_migrations()?)?;
    fs::write(out.join("redacted.rs"), redacted())?;

    // Claims stay encoded until they are needed (`src/proto/encoded_struct.rs`).
    let claims = (".google.protobuf.Struct", "crate::proto::EncodedStruct");
    // Revocations are encoded once for all watchers (`src/proto/watch_revocations.rs`).
    let revocations = (".countersign.v1.WatchRevocations", "crate::proto::WatchRevocations");
    tonic_prost_build::configure()
        // A repeated request gets the same bytes.
        .btree_map(".")
        .extern_path(claims.0, claims.1)
        .extern_path(revocations.0, revocations.1)
        .codec_path("crate::proto::codec::Codec")
        .skip_debug(WITH_SECRETS.map(|name| format!(".{PACKAGE}.{name}")))
        .compile_fds(descriptors)?;
    Ok(())
}

/// Returns the line that calls the macro `redacted!` of `src/proto.rs`. The macro implements
/// `Debug` for the types of [`WITH_SECRETS`].
fn redacted() -> String {
    format!("redacted!({});", WITH_SECRETS.map(rust_type).join(", "))
}

/// Returns the path of the Rust type that is generated for a message or a oneof. The type of a
/// oneof is in a module named after the message.
fn rust_type(name: &str) -> String {
    let Some((message, oneof)) = name.split_once('.') else { return name.to_owned() };
    let mut module = String::new();
    for letter in message.chars() {
        if letter.is_uppercase() && !module.is_empty() {
            module.push('_');
        }
        module.extend(letter.to_lowercase());
    }
    let (initial, rest) = oneof.split_at(1);
    format!("{module}::{}{rest}", initial.to_uppercase())
}

/// Returns the source text of a slice that holds the version and the SQL of each PostgreSQL
/// migration, in order. The name of a migration's folder is its version, `_` and a few words.
fn postgres_migrations() -> Result<String, Box<dyn Error>> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("migrations/postgres");
    let mut names = vec![];
    for entry in fs::read_dir(&folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let mut slice = "&[".to_owned();
    for name in names {
        let (version, _) = name.split_once('_').ok_or_else(|| format!("{name} has no version"))?;
        let file = folder.join(&name).join("up.sql");
        writeln!(slice, "({version:?}, include_str!({file:?})),")?;
    }
    Ok(slice + "]")
}
