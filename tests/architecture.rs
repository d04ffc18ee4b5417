//! The arrows of docs/architecture.md: which part may use which. Rules kept in prose rot, so the
//! code is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What each part may use of its siblings. `domain` is open to all.
const ALLOWED: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("mutants", &[]),
    ("clock", &["mutants"]),
    ("rng", &[]),
    ("proto", &[]),
    ("shutdown", &[]),
    ("token", &[]),
    ("keys", &["rng", "store"]),
    ("store", &["mutants"]),
    ("revocation", &["clock", "keys", "mutants", "rng", "store"]),
    ("authority", &["token", "keys", "revocation", "store", "clock", "mutants", "rng"]),
    ("tasks", &["authority", "clock"]),
    ("callers", &["clock", "rng"]),
    ("gateway", &["authority"]),
    ("net", &["keys"]),
    ("grpc", &["authority", "callers", "gateway", "net", "proto"]),
    ("metrics", &["authority", "callers", "gateway", "net", "revocation"]),
    ("http", &["authority", "callers", "gateway", "metrics", "net", "token"]),
    ("config", &["callers", "gateway", "net"]),
    ("telemetry", &["config"]),
    (
        "app",
        &[
            "authority",
            "callers",
            "clock",
            "config",
            "gateway",
            "grpc",
            "http",
            "keys",
            "metrics",
            "net",
            "revocation",
            "rng",
            "shutdown",
            "store",
            "tasks",
        ],
    ),
    (
        "cli",
        &["app", "callers", "clock", "config", "proto", "rng", "shutdown", "telemetry", "token"],
    ),
];

/// Crates that a part must not name.
const FOREIGN: &[(&str, &[&str])] = &[
    ("domain", &["tokio", "diesel", "tonic", "prost", "crate::proto"]),
    ("token", &["tokio", "diesel", "tonic", "crate::clock", "crate::store"]),
    ("keys", &["tokio", "diesel", "tonic", "crate::store"]),
    ("revocation", &["axum", "diesel", "tonic", "crate::store::postgres", "crate::store::sqlite"]),
    (
        "authority",
        &[
            "axum",
            "diesel",
            "tonic",
            "prost",
            "crate::proto",
            "crate::store::postgres",
            "crate::store::sqlite",
        ],
    ),
    ("config", &["tokio", "diesel", "tonic"]),
    ("tasks", &["diesel", "tonic", "crate::store"]),
    ("grpc", &["axum", "diesel", "crate::store", "crate::keys", "crate::revocation"]),
    ("callers", &["axum", "hyper", "tokio", "tonic"]),
    ("net", &["axum", "hyper", "tonic"]),
    ("metrics", &["tokio", "tonic", "axum"]),
    ("http", &["diesel", "tonic", "prost", "prometheus_client"]),
    ("cli", &["diesel", "crate::store", "crate::authority"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The top-level part that a file belongs to, and the file without its tests.
fn parts() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&root)
        .into_iter()
        .filter(|path| !path.file_name().unwrap().to_string_lossy().contains("tests"))
        .map(|path| {
            let first = path
                .strip_prefix(&root)
                .unwrap()
                .components()
                .next()
                .unwrap()
                .as_os_str()
                .to_owned();
            let part = first.to_string_lossy().trim_end_matches(".rs").to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap().to_owned();
            (part, path, code)
        })
        .collect()
}

/// The siblings that a text uses: `crate::NAME`, and the first names within `use crate::{…}`.
fn used(code: &str) -> Vec<String> {
    let mut names = vec![];
    for (position, _) in code.match_indices("crate::") {
        let rest = &code[position + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut name) = (0, String::new());
            for character in group.chars() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => names.push(std::mem::take(&mut name)),
                    _ if depth == 0 => name.push(character),
                    _ => {}
                }
            }
            names.push(name);
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    let first =
        |name: &String| name.trim().split("::").next().unwrap_or_default().trim().to_owned();
    names.iter().map(first).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_arrow_is_one_that_the_table_allows() {
    for (part, path, code) in parts() {
        if part == "lib" || part == "main" {
            continue;
        }
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == part)
            .unwrap_or_else(|| panic!("no rule for {part}"));
        for name in used(&code) {
            let fine = name == "domain" || name == part || allowed.contains(&name.as_str());
            assert!(fine, "{}: {part} must not use {name}", path.display());
        }
    }
}

#[test]
fn no_part_names_a_crate_that_it_must_not_know() {
    for (part, path, code) in parts() {
        let Some((_, foreign)) = FOREIGN.iter().find(|(name, _)| *name == part) else { continue };
        for name in *foreign {
            let uses = code.contains(&format!("{name}::"));
            assert!(!uses, "{}: {part} must not name {name}", path.display());
        }
    }
}

/// Cargo finds the files beside this one by itself, but a module that nobody names is not even
/// compiled.
#[test]
fn no_file_of_tests_is_forgotten() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = sources(&root);
    let all: String = files.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for path in files.iter().filter(|path| path.parent() != Some(&root)) {
        let (file, folder) =
            (path.file_stem().unwrap(), path.parent().unwrap().file_name().unwrap());
        let (file, folder) = (file.to_string_lossy(), folder.to_string_lossy());
        let is_named = all.contains(&format!("\"{folder}/{file}.rs\""))
            || all.contains(&format!("\nmod {file};"));
        assert!(is_named, "{}", path.display());
    }
}

#[test]
fn the_reader_of_arrows_sees_them() {
    let code = "use crate::{domain::{a, b}, store::Store,\n keys};\nlet x = crate::clock::now();";
    assert_eq!(used(code), ["domain", "store", "keys", "clock"]);
}
