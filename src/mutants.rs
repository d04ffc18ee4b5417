//! Rules that can be switched off, each by its name, so that the tests can be seen to notice. Without the feature `mutants`,
//! which no release has, there is no such switch.

/// Whether this rule is broken on purpose.
#[cfg(feature = "mutants")]
pub fn broken(rule: &str) -> bool {
    use std::sync::LazyLock;

    static BROKEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("COUNTERSIGN_MUTANT").ok());
    BROKEN.as_deref() == Some(rule)
}

/// Whether this rule is broken on purpose.
#[cfg(not(feature = "mutants"))]
pub const fn broken(_rule: &str) -> bool {
    false
}
