//! Reports wrong usage of the command line. Like every error, the report is one line, which names
//! the argument and the problem, and says how to correct it.

use std::{
    env,
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use clap::{
    CommandFactory, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{Cli, Failure, WRONG_START};

/// Returns whether the command line asks for JSON, even if it cannot be parsed.
pub fn wants_json() -> bool {
    env::args_os()
        .skip(1)
        .take_while(|argument| argument != "--")
        .any(|argument| argument == OsStr::new("--json"))
}

/// Prints help if the user asked for it, and otherwise the error. Returns the exit code.
pub fn report(error: &Error) -> ExitCode {
    let is_help = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if is_help {
        // An error is ignored, because the reader may have closed the pipe.
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(WRONG_START) } else { ExitCode::SUCCESS };
    }
    Failure::at_start(format!(
        "{}: see `{} --help`",
        describe(error),
        command_path(env::args_os().skip(1))
    ))
    .print();
    ExitCode::from(WRONG_START)
}

/// Describes the error without clap's usage text, which shows options with a default as if they
/// were required.
fn describe(error: &Error) -> String {
    let one = |kind| texts(error, kind).into_iter().next().unwrap_or_default();
    let argument = option(one(ContextKind::InvalidArg));
    let value = one(ContextKind::InvalidValue);
    let advice = advice(error);
    match error.kind() {
        ErrorKind::UnknownArgument => {
            format!("{argument} is not an argument of this command{advice}")
        }
        ErrorKind::InvalidSubcommand => {
            format!("{:?} is not a command{advice}", one(ContextKind::InvalidSubcommand))
        }
        ErrorKind::MissingSubcommand => "a command is missing".to_owned(),
        ErrorKind::MissingRequiredArgument => {
            format!("missing {}", texts(error, ContextKind::InvalidArg).join(", "))
        }
        ErrorKind::ArgumentConflict => {
            let others: Vec<_> =
                texts(error, ContextKind::PriorArg).into_iter().map(option).collect();
            match others.is_empty() || others == [argument.as_str()] {
                true => format!("{argument} is given more than once"),
                false => format!("{argument} cannot be combined with {}", others.join(", ")),
            }
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{argument} needs a value"),
        ErrorKind::InvalidValue => {
            let valid = texts(error, ContextKind::ValidValue);
            let choice = if valid.is_empty() {
                String::new()
            } else {
                format!(" is not one of {}", valid.join(", "))
            };
            format!("{argument} {value:?}{choice}{advice}")
        }
        ErrorKind::ValueValidation => {
            let reason =
                std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            format!("{argument} {value:?}: {reason}")
        }
        // The first line is the error, and the rest is usage.
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            line.trim_start_matches("error: ").to_owned()
        }
    }
}

/// Suggests the names that are nearest to a mistyped one.
fn advice(error: &Error) -> String {
    let command = texts(error, ContextKind::SuggestedSubcommand);
    let argument = texts(error, ContextKind::SuggestedArg);
    let value = texts(error, ContextKind::SuggestedValue);
    let near = match (command.as_slice(), argument.as_slice()) {
        ([command, ..], [argument, ..]) => vec![format!("{command} {argument}")],
        (_, [_, ..]) => argument,
        ([_, ..], []) => command,
        _ => value,
    };
    if near.is_empty() { String::new() } else { format!(", did you mean {}?", near.join(" or ")) }
}

fn texts(error: &Error, kind: ContextKind) -> Vec<String> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => vec![],
    }
}

/// Shortens an option like `--label <LABEL>` to its name, `--label`.
fn option(text: String) -> String {
    if text.starts_with('-') { text.split(' ').next().unwrap_or_default().to_owned() } else { text }
}

/// Returns `countersign` and the valid subcommands that follow it on the command line. The error
/// suggests running this command with `--help`.
fn command_path(arguments: impl Iterator<Item = OsString>) -> String {
    let mut path = vec!["countersign".to_owned()];
    let mut command = Cli::command();
    for argument in arguments {
        let found = argument.to_str().and_then(|name| command.find_subcommand(name)).cloned();
        let Some(found) = found else { break };
        path.push(found.get_name().to_owned());
        command = found;
    }
    path.join(" ")
}
