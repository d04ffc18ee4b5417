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

const PROTOS: [&str; 3] = [
    "countersign/v1/key_service.proto",
    "countersign/v1/session.proto",
    "countersign/v1/session_service.proto",
];

/// Messages whose `Debug` must not show tokens or claims.
const WITH_SECRETS: [&str; 8] = [
    ".countersign.v1.Tokens",
    ".countersign.v1.RefreshRequest",
    ".countersign.v1.ValidateRequest",
    ".countersign.v1.RevokeRequest",
    ".countersign.v1.RevokeRequest.target",
    ".countersign.v1.CreateSessionRequest",
    ".countersign.v1.Session",
    ".countersign.v1.ValidateResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // `embed_migrations!` reads the folder at compile time, and cargo does not notice that.
    println!("cargo:rerun-if-changed=migrations");

    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("countersign.descriptors.bin"), descriptors.encode_to_vec())?;
    fs::write(out.join("postgres_migrations.rs"), postgres_migrations()?)?;

    // Claims stay encoded until they are needed (`src/proto/encoded_struct.rs`).
    let encoded = (".google.protobuf.Struct", "crate::proto::EncodedStruct");
    // `src/proto.rs` implements `Debug` by hand for the messages that carry tokens or claims.
    tonic_prost_build::configure()
        .extern_path(encoded.0, encoded.1)
        .skip_debug(WITH_SECRETS)
        .compile_fds(descriptors)?;
    Ok(())
}

/// Returns the migrations of PostgreSQL as a slice of Rust, each with its version and its text, in
/// order. A folder is named by the version, `_` and a few words.
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
