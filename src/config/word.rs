//! Compares a word with the valid words of a setting, and suggests the most similar one.

/// The similarity that a word must exceed to be suggested, from 0 to 1.
const SIMILAR: f64 = 0.75;

/// Returns the known word that is most similar to this one, ignoring case, if one is similar
/// enough.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near =
        known.iter().map(|known| (strsim::jaro_winkler(&word, &known.to_lowercase()), *known));
    near.filter(|(score, _)| *score > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// Returns the error text for a word that is none of the known ones.
pub fn unknown(word: &str, known: &[&str]) -> String {
    let problem = format!("{word:?} is not one of {}", known.join(", "));
    match nearest(word, known) {
        Some(near) => format!("{problem}: did you mean {near}?"),
        None => problem,
    }
}
