//! Compiles the protocol without `protoc`, keeps its descriptors for reflection and JSON, and watches the migrations.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const PROTOS: [&str; 2] = ["countersign/v1/session.proto", "countersign/v1/session_service.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // `embed_migrations!` reads the folder at compile time, which cargo cannot see by itself.
    println!("cargo:rerun-if-changed=migrations");

    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let path = PathBuf::from(env::var("OUT_DIR")?).join("countersign.descriptors.bin");
    fs::write(path, descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // The generated code documents what the proto documents; its own helper items carry no comments.
        .compile_fds(descriptors)?;
    Ok(())
}
