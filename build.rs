//! Compiles the protocol without `protoc`, keeps its descriptors for reflection and JSON, and
//! watches the migrations.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 3] = [
    "countersign/v1/key_service.proto",
    "countersign/v1/session.proto",
    "countersign/v1/session_service.proto",
];

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
    // `embed_migrations!` reads the folder at compile time, which cargo cannot see by itself.
    println!("cargo:rerun-if-changed=migrations");

    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("countersign.descriptors.bin");
    fs::write(path, descriptors.encode_to_vec())?;

    // Claims stay encoded until they are needed: `src/proto/encoded_struct.rs`.
    let encoded = (".google.protobuf.Struct", "crate::proto::EncodedStruct");
    // What carries tokens or claims prints without them: `src/proto.rs` writes these by hand.
    tonic_prost_build::configure()
        .extern_path(encoded.0, encoded.1)
        .skip_debug(WITH_SECRETS)
        .compile_fds(descriptors)?;
    Ok(())
}
