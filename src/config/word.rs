//! Compares a word with the few that a setting takes, and suggests the nearest one.

/// Below this similarity, two words have nothing to do with each other.
const SIMILAR: f64 = 0.75;

/// The known word that is most like this one, whatever the case of its letters.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near =
        known.iter().map(|known| (strsim::jaro_winkler(&word, &known.to_lowercase()), *known));
    near.filter(|(score, _)| *score > SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// The problem with a word that is none of the known ones.
pub fn unknown(word: &str, known: &[&str]) -> String {
    let problem = format!("{word:?} is not one of {}", known.join(", "));
    match nearest(word, known) {
        Some(near) => format!("{problem}: did you mean {near}?"),
        None => problem,
    }
}
