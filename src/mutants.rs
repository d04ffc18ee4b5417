//! Mutants: rules that can be broken by name, and a wall clock that can be shifted, to show that
//! the tests notice it. This exists only with the feature `mutants`, which no release has.

/// Returns whether the rule with this name is broken on purpose.
#[cfg(feature = "mutants")]
pub fn broken(rule: &str) -> bool {
    use std::sync::LazyLock;

    static BROKEN: LazyLock<Option<String>> =
        LazyLock::new(|| std::env::var("COUNTERSIGN_MUTANT").ok());
    BROKEN.as_deref() == Some(rule)
}

/// Returns whether the rule with this name is broken on purpose.
#[cfg(not(feature = "mutants"))]
pub const fn broken(_rule: &str) -> bool {
    false
}

/// Returns the shift of the wall clock of this process, in microseconds.
#[cfg(feature = "mutants")]
pub fn wall_clock_offset() -> i64 {
    use std::sync::LazyLock;

    static OFFSET: LazyLock<i64> = LazyLock::new(|| {
        let Ok(text) = std::env::var("COUNTERSIGN_WALL_CLOCK_OFFSET") else { return 0 };
        let (sign, span) = text.strip_prefix('-').map_or((1, text.as_str()), |span| (-1, span));
        let span: humantime_serde::re::humantime::Duration = span.parse().unwrap_or_default();
        i64::try_from(span.as_micros()).unwrap_or_default() * sign
    });
    *OFFSET
}

/// Returns the shift of the wall clock of this process, in microseconds.
#[cfg(not(feature = "mutants"))]
pub const fn wall_clock_offset() -> i64 {
    0
}
