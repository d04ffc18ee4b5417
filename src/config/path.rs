//! Paths in settings.

use std::path::{Path, PathBuf};

/// Makes a relative path absolute; `None` if it stays as it is.
pub fn resolve(path: &str, folder: &Path) -> Result<Option<String>, String> {
    // A text that is not a path is refused later, by the check of its section.
    if path.is_empty() || Path::new(path).is_absolute() || has_special_meaning(path) {
        return Ok(None);
    }
    let path: PathBuf = folder.join(path).components().collect();
    let text = path
        .to_str()
        .ok_or("the name of the folder of a relative path is not UTF-8: use absolute paths")?;
    Ok(Some(text.to_owned()))
}

/// Returns whether SQLite gives this name a special meaning, and would not open the file of this
/// name. The name may mean a database in memory, or contain options that turn off durability.
pub fn has_special_meaning(path: &str) -> bool {
    path.starts_with([':', '?']) || path.starts_with("file:")
}
