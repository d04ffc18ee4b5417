//! Compiles the proto files, which are a link to those of the service, without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost_types::{FileDescriptorProto, FileDescriptorSet};

const PROTOS: [&str; 5] = [
    "countersign/v1/audit_service.proto",
    "countersign/v1/key_service.proto",
    "countersign/v1/revocation_service.proto",
    "countersign/v1/session.proto",
    "countersign/v1/session_service.proto",
];

/// The messages and oneofs whose `Debug` must not show tokens or claims: the name of the message in
/// the proto file, and the path of its Rust type.
const WITH_SECRETS: [(&str, &str); 12] = [
    ("Tokens", "Tokens"),
    ("CreateSessionRequest", "CreateSessionRequest"),
    ("ImportedSession", "ImportedSession"),
    ("ReauthenticateRequest", "ReauthenticateRequest"),
    ("ReauthenticateRequest.session", "reauthenticate_request::Session"),
    ("RefreshRequest", "RefreshRequest"),
    ("RevokeRequest", "RevokeRequest"),
    ("RevokeRequest.target", "revoke_request::Target"),
    ("Session", "Session"),
    ("UpdateSessionRequest", "UpdateSessionRequest"),
    ("ValidateRequest", "ValidateRequest"),
    ("ValidateResponse", "ValidateResponse"),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let types: Vec<_> = WITH_SECRETS.iter().map(|(_, path)| *path).collect();
    let files = protox::compile(PROTOS, ["proto"])?;
    check_secrets(&files)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("redacted.rs"), format!("redacted!({});", types.join(", ")))?;
    tonic_prost_build::configure()
        .build_server(false)
        .btree_map(".")
        .skip_debug(WITH_SECRETS.map(|(name, _)| format!(".countersign.v1.{name}")))
        .compile_fds(files)?;
    Ok(())
}

/// Fails if a message has a token, or a `Struct` (claims and metadata), and is not in the list.
fn check_secrets(files: &FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    let is_ours = |file: &&FileDescriptorProto| file.package() == "countersign.v1";
    for message in files.file.iter().filter(is_ours).flat_map(|file| &file.message_type) {
        let has_secret = message.field.iter().any(|field| {
            matches!(field.name(), "token" | "access_token" | "refresh_token")
                || field.type_name() == ".google.protobuf.Struct"
        });
        if has_secret && !WITH_SECRETS.iter().any(|(name, _)| *name == message.name()) {
            let name = message.name();
            return Err(format!("add {name} to WITH_SECRETS: its Debug would show secrets").into());
        }
    }
    Ok(())
}
