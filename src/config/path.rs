//! Paths in settings.

use std::path::{Path, PathBuf};

/// Makes a path absolute, if it is not.
pub fn resolve(path: &str, folder: &Path) -> Result<Option<String>, String> {
    // The section that the setting belongs to refuses a text that is no path.
    if path.is_empty() || Path::new(path).is_absolute() || has_special_meaning(path) {
        return Ok(None);
    }
    let path: PathBuf = folder.join(path).components().collect();
    let text = path
        .to_str()
        .ok_or("the name of the folder of a relative path is no UTF-8: use absolute paths")?;
    Ok(Some(text.to_owned()))
}

/// SQLite reads more into some names: a database in memory, or options that would undo its
/// durability.
pub fn has_special_meaning(path: &str) -> bool {
    path.starts_with([':', '?']) || path.starts_with("file:")
}
