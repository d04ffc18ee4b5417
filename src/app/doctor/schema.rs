//! Judges the schema of a database.

use super::finding::Finding;
use crate::config::Config;

const CHECK: &str = "schema";

/// Judges the migrations that have not been run. `serve` runs them unless `database.migrate` is
/// false.
pub fn judge(config: &Config, pending: &[&str], is_empty: bool) -> Finding {
    let migrates = config.database_options.migrate;
    let finding = match (pending, is_empty) {
        ([], _) => return Finding::ok(CHECK, "the schema is up to date"),
        (_, true) => "the database has no tables yet".to_owned(),
        (pending, false) => format!(
            "the schema is of an older countersign: missing {} {}",
            if pending.len() == 1 { "is migration" } else { "are migrations" },
            pending.join(", ")
        ),
    };
    match migrates {
        true => Finding::warn(
            CHECK,
            finding,
            "start this version of the service, which brings the schema up to date, or run \
             `countersign migrate`",
        ),
        false => Finding::fail(
            CHECK,
            format!("{finding}, and the service does not migrate (database.migrate)"),
            "run `countersign migrate` with the rights of the database's owner",
        ),
    }
}
