//! Does with the Rust client library what it is told, so that all libraries can be put into the
//! same situations. `clients/situations/README.md` describes the commands.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod clock;
mod command;
mod driver;
mod load;

use std::{
    error::Error,
    io::{BufRead, Write, stdin, stdout},
};

use serde_json::Value;

use self::{command::Command, driver::Driver};

/// The result of a command, or a mistake of the program that sent it.
type Answer = Result<Value, Box<dyn Error + Send + Sync>>;

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut driver, mut answers) = (Driver::default(), stdout());
    for line in stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?)?;
        // The tasks in the background run on the other threads meanwhile.
        let answer = runtime.block_on(driver.answer(command))?;
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}
