//! Checks the rules of docs/architecture.md against the code: each part uses only the parts that it
//! may use, and no files use each other in a cycle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod paths;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use paths::{Module, modules, undeclared};

/// The parts that each part may use besides `domain`, which all may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("verification", &[]),
    ("domain", &["verification"]),
    ("clock", &["verification"]),
    ("rng", &[]),
    ("proto", &[]),
    ("shutdown", &[]),
    ("token", &["verification"]),
    ("keys", &["rng", "store", "verification"]),
    ("store", &["instruments"]),
    ("revocation", &["clock", "keys", "rng", "store", "verification"]),
    (
        "authority",
        &["clock", "instruments", "keys", "revocation", "rng", "store", "token", "verification"],
    ),
    ("tasks", &["authority", "clock"]),
    ("callers", &["clock", "rng"]),
    ("gateway", &["authority"]),
    ("net", &["keys"]),
    ("instruments", &["verification"]),
    ("calls", &["authority", "clock", "instruments"]),
    ("grpc", &["authority", "callers", "calls", "gateway", "instruments", "net", "proto"]),
    ("metrics", &["authority", "callers", "gateway", "instruments", "net", "revocation"]),
    (
        "http",
        &["authority", "callers", "calls", "gateway", "instruments", "metrics", "net", "token"],
    ),
    ("config", &["callers", "gateway", "net"]),
    ("telemetry", &["config", "instruments", "net"]),
    (
        "app",
        &[
            "authority",
            "callers",
            "calls",
            "clock",
            "config",
            "gateway",
            "grpc",
            "http",
            "instruments",
            "keys",
            "metrics",
            "net",
            "revocation",
            "rng",
            "shutdown",
            "store",
            "tasks",
            "telemetry",
        ],
    ),
    (
        "cli",
        &["app", "callers", "clock", "config", "proto", "rng", "shutdown", "telemetry", "token"],
    ),
];

/// The crates that the crate `verification` must not name or depend on, because it also runs in the
/// processes of clients.
const SERVER_CRATES: &[&str] =
    &["axum", "bb8", "diesel", "diesel-async", "hyper", "prost", "tokio", "tonic", "tracing"];

/// The crates that a part must not name, and the modules of this crate that it must not name.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("verification", SERVER_CRATES),
    ("domain", &["tokio", "diesel", "tonic", "prost"]),
    ("token", &["tokio", "diesel", "tonic"]),
    ("keys", &["tokio", "diesel", "tonic", ENGINES[0], ENGINES[1]]),
    ("revocation", &["axum", "diesel", "tonic", ENGINES[0], ENGINES[1]]),
    ("authority", &["axum", "diesel", "tonic", "prost", ENGINES[0], ENGINES[1]]),
    ("config", &["tokio", "diesel", "tonic"]),
    ("tasks", &["diesel", "tonic"]),
    ("grpc", &["axum", "diesel"]),
    ("callers", &["axum", "hyper", "tokio", "tonic"]),
    ("net", &["axum", "hyper", "tonic"]),
    ("metrics", &["tokio", "tonic", "axum"]),
    ("http", &["diesel", "tonic", "prost", "prometheus_client"]),
    ("cli", &["diesel"]),
];

/// The engines, which only `app` and `store` itself may name. Other parts that may use `store` use
/// the `Store` contract in it.
const ENGINES: [&str; 2] = ["crate::store::postgres", "crate::store::sqlite"];

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn allowed(part: &str) -> &'static [&'static str] {
    let row = ALLOWED.iter().find(|(name, _)| *name == part);
    row.unwrap_or_else(|| panic!("{part} has no row in ALLOWED")).1
}

#[test]
fn a_part_uses_only_the_parts_that_are_allowed_for_it() {
    for module in modules() {
        let Some(part) = module.part() else { continue };
        for used in module.uses.iter().filter_map(|path| path.strip_prefix("crate::")) {
            let name = used.split("::").next().unwrap();
            let is_fine = name == "domain" || name == part || allowed(part).contains(&name);
            assert!(is_fine, "{}: {part} must not use {name}", module.file);
        }
    }
}

#[test]
fn a_part_names_no_crate_or_engine_that_is_forbidden_for_it() {
    for module in modules() {
        let Some(part) = module.part() else { continue };
        let Some((_, names)) = FORBIDDEN.iter().find(|(name, _)| *name == part) else { continue };
        for used in &module.uses {
            let is_named = |name: &&&str| used == *name || used.starts_with(&format!("{name}::"));
            if let Some(name) = names.iter().find(is_named) {
                panic!("{}: {part} must not name {name}, as in {used}", module.file);
            }
        }
    }
}

/// Returns the files that depend on each other in a cycle, if there is one, and the files that
/// depend on those. A file and the module above it may use each other.
fn cycle(modules: &[Module]) -> Option<Vec<&str>> {
    let names: BTreeSet<&str> = modules.iter().map(|module| module.path.as_str()).collect();
    let edges: BTreeMap<&str, BTreeSet<&str>> = modules
        .iter()
        .map(|module| {
            let targets = module.uses.iter().filter_map(|path| {
                let ends = path.match_indices("::").map(|(end, _)| end).chain([path.len()]);
                ends.filter_map(|end| names.get(&path[..end]).copied()).last()
            });
            let is_above = |target: &str| module.path.starts_with(&format!("{target}::"));
            let is_beside = |target: &&str| !is_above(target) && *target != module.path;
            (module.path.as_str(), targets.filter(is_beside).collect())
        })
        .collect();
    // A file that uses no file in `left` is not part of a cycle.
    let mut left = names;
    loop {
        let free: Vec<&str> =
            left.iter().filter(|name| edges[*name].is_disjoint(&left)).copied().collect();
        if free.is_empty() {
            return (!left.is_empty()).then(|| left.into_iter().collect());
        }
        left.retain(|name| !free.contains(name));
    }
}

/// The scripts name no packages, so they lint and test the default members.
#[test]
fn every_package_of_the_workspace_that_has_tests_is_a_default_member() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let list = |key: &str| {
        let entries = manifest["workspace"][key].as_array().unwrap().iter();
        entries.map(|entry| entry.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let mut expected = list("members");
    assert!(expected.remove("tests/support") && expected.insert(".".to_owned()));
    assert_eq!(list("default-members"), expected);
}

/// Cargo.lock does not tell development dependencies from others, so the crate must not have them as
/// development dependencies either.
#[test]
fn the_crate_for_verification_depends_on_no_runtime_server_or_database() {
    let lock: toml::Table = read("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap();
    let mut found = BTreeSet::from(["countersign-verification"]);
    let mut left = vec!["countersign-verification"];
    while let Some(name) = left.pop() {
        for package in packages.iter().filter(|package| package["name"].as_str() == Some(name)) {
            let dependencies = package.get("dependencies").and_then(toml::Value::as_array);
            // A version follows the name if there are several.
            let names = dependencies.into_iter().flatten().map(|entry| entry.as_str().unwrap());
            let names = names.map(|entry| entry.split(' ').next().unwrap());
            left.extend(names.filter(|name| found.insert(*name)));
        }
    }
    assert!(found.contains("jsonwebtoken"), "{found:?}");
    for name in SERVER_CRATES {
        assert!(!found.contains(name), "countersign-verification depends on {name}");
    }
}

/// Cargo finds the root file of each test binary by itself. Other files are not even compiled
/// unless a module declares them, so their tests would never run.
#[test]
fn every_source_file_belongs_to_a_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "verification/src", "clients/rust/src", "clients/rust/tests", "tests"] {
        let folder = root.join(folder);
        let is_root = |file: &Path| folder.ends_with("tests") && file.parent() == Some(&folder);
        let lost: Vec<_> = undeclared(&folder).into_iter().filter(|file| !is_root(file)).collect();
        assert!(lost.is_empty(), "no module declares {lost:?}");
    }
}

#[test]
fn no_files_use_each_other_in_a_cycle() {
    // If this fails, the output also names the files that depend on the cycle.
    assert_eq!(cycle(&modules()), None);
}

#[test]
fn the_table_in_the_documentation_equals_the_rules_of_this_test() {
    let page = read("docs/architecture.md");
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, uses] = cells[..] else { continue };
        let part = name.trim_matches('`').trim_end_matches('/').trim_end_matches(".rs");
        let words = uses.split('`').skip(1).step_by(2);
        rows.insert(part.to_owned(), words.map(str::to_owned).collect::<BTreeSet<_>>());
    }
    for (part, allowed) in ALLOWED {
        let row = rows.get(*part).unwrap_or_else(|| panic!("{part} has no row in the table"));
        assert_eq!(row, &allowed.iter().map(|name| (*name).to_owned()).collect(), "{part}");
    }
}

#[test]
fn the_diagram_in_the_documentation_equals_the_diagram_in_the_code() {
    let diagram = |text: &str| {
        let start = text.find("```text\n").unwrap();
        text[start..].split("```").nth(1).unwrap().to_owned()
    };
    let code: String = read("src/lib.rs")
        .lines()
        .filter_map(|line| {
            Some(line.strip_prefix("//!")?.strip_prefix(' ').unwrap_or("").to_owned() + "\n")
        })
        .collect();
    assert_eq!(diagram(&code), diagram(&read("docs/architecture.md")));
}

#[test]
fn the_parser_of_sources_finds_all_paths() {
    let code = "
        use crate::{domain::{a, b as c}, store::{self, Store}};
        use super::x;
        use tokio::time::*;
        use countersign_verification::time::Timestamp;
        fn f() -> crate::keys::Ring { log!(\"{}\", crate::clock::now()); super::super::y() }
        #[cfg(test)]
        mod tests { use crate::tested; }";
    let module = Module::read("src/part/file.rs", "crate::part::file", code);
    let expected = [
        "crate::clock::now",
        "crate::domain::a",
        "crate::domain::b",
        "crate::keys::Ring",
        "crate::part::x",
        "crate::store",
        "crate::store::Store",
        "crate::verification::time::Timestamp",
        "crate::y",
        "tokio::time",
    ];
    assert_eq!(module.uses.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let code = "use crate::ids::SessionId; use super::time::Timestamp;";
    let module = Module::read("verification/src/a.rs", "crate::verification::a", code);
    let expected = ["crate::verification::ids::SessionId", "crate::verification::time::Timestamp"];
    assert_eq!(module.uses.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn a_cycle_is_found_through_a_third_file_and_not_through_the_module_above() {
    let module = |path: &str, uses: &[&str]| Module {
        file: String::new(),
        path: path.to_owned(),
        uses: uses.iter().map(|name| (*name).to_owned()).collect(),
    };
    let part = module("crate::a", &["crate::a::b::f"]);
    let fine =
        [part, module("crate::a::b", &["crate::a::g", "crate::c::h"]), module("crate::c", &[])];
    assert_eq!(cycle(&fine), None);
    let wrong = [
        module("crate::a", &["crate::b::f"]),
        module("crate::b", &["crate::c"]),
        module("crate::c", &["crate::a::g"]),
        module("crate::d", &[]),
    ];
    assert_eq!(cycle(&wrong), Some(vec!["crate::a", "crate::b", "crate::c"]));
}
