//! Prints the settings in force as the text of a configuration file.

use std::path::Path;

use toml::{Table, Value, ser::Error};

use super::file;

const HEADER: &str = "\
# A setting in a comment is not set: its value is derived from other settings, or from the folder in
# which the service is started, and changes with them as long as it stays a comment.
";

/// Returns the settings as TOML. Derived settings are printed as comments. Otherwise they would
/// keep their values when a user changes the settings from which they are derived. Relative paths
/// become absolute, because in a file they would be relative to another folder.
pub fn to_toml(
    effective: &Table,
    written: &Table,
    working_directory: &Path,
) -> Result<String, Error> {
    let mut text = HEADER.to_owned();
    print_section(&mut text, "", effective, written, working_directory)?;
    Ok(text)
}

fn print_section(
    text: &mut String,
    path: &str,
    effective: &Table,
    written: &Table,
    folder: &Path,
) -> Result<(), Error> {
    let (mut settings, mut derived, mut lists) = (Table::new(), vec![], Table::new());
    for (name, value) in effective {
        match value {
            Value::Table(_) => {}
            Value::Array(items) if items.iter().any(Value::is_table) => {
                lists.insert(name.clone(), value.clone());
            }
            value if written.contains_key(name) => {
                settings.insert(name.clone(), absolute(name, value, folder));
            }
            value => derived.push((name, value)),
        }
    }
    text.push_str(&toml::to_string(&settings)?);
    for (name, value) in derived {
        text.push_str(&format!("# {name} = {}\n", literal(value)));
    }
    for (name, section) in
        effective.iter().filter_map(|(name, value)| Some((name, value.as_table()?)))
    {
        let path = if path.is_empty() { key(name) } else { format!("{path}.{}", key(name)) };
        let empty = Table::new();
        let of_section = written.get(name).and_then(Value::as_table);
        // A section that is not in the file at all must not become part of it.
        let mark = if of_section.is_some() { "" } else { "# " };
        text.push_str(&format!("\n{mark}[{path}]\n"));
        print_section(text, &path, section, of_section.unwrap_or(&empty), folder)?;
    }
    if !lists.is_empty() {
        text.push('\n');
        text.push_str(&toml::to_string(&lists)?);
    }
    Ok(())
}

fn absolute(name: &str, value: &Value, folder: &Path) -> Value {
    let resolved = value.as_str().and_then(|text| file::resolve(name, text, folder).ok().flatten());
    resolved.map_or_else(|| value.clone(), Value::String)
}

/// Returns a value in one line, as JSON. A JSON string is also a TOML string if the character DEL
/// is escaped.
fn literal(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default().replace('\u{7f}', "\\u007f")
}

fn key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !name.is_empty() && name.chars().all(is_bare) {
        true => name.to_owned(),
        false => literal(&Value::String(name.to_owned())),
    }
}
