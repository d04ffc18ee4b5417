//! `countersign top`

mod sample;
mod screen;

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::Args;
use ratatui::{
    DefaultTerminal, Terminal,
    backend::TestBackend,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::time::{Instant, sleep};

use self::{sample::Sample, screen::Screen};
use super::{Failure, Outcome, Settings, output::line};
use crate::{app::probe, config::Config};

/// The size of the screen that is printed if the output is not a terminal.
const PRINTED: (u16, u16) = (80, 24);

#[derive(Debug, Args)]
pub struct Top {
    #[command(flatten)]
    settings: Settings,
    /// Time between two readings of the metrics.
    #[arg(long, value_name = "SPAN", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// Print what happened within one interval, and exit.
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&span) {
        true => Ok(span),
        false => Err("must be from 100ms to 60s".to_owned()),
    }
}

impl Top {
    pub async fn run(self) -> Outcome {
        let config = self.settings.load().map_err(Failure::at_start)?;
        let first = read(&config).await.map_err(Failure::failed)?;
        if self.once || !io::stdout().is_terminal() {
            sleep(self.interval).await;
            let second = read(&config).await.map_err(Failure::failed)?;
            print(&config, &first, &second)?;
        } else {
            let mut terminal = ratatui::try_init().map_err(Failure::failed)?;
            let outcome = watch(&mut terminal, &config, first, self.interval).await;
            ratatui::restore();
            outcome?;
        }
        Ok(std::process::ExitCode::SUCCESS)
    }
}

/// Reads the metrics once.
async fn read(config: &Config) -> Result<Sample, String> {
    let page = probe::scrape(config).await.map_err(|error| {
        let address = config.http_listen.map(|listen| listen.address.to_string());
        format!("the metrics at {}: {error}", address.unwrap_or_default())
    })?;
    Ok(Sample::read(&page, Instant::now()))
}

/// Prints one screen as text.
fn print(config: &Config, before: &Sample, now: &Sample) -> Result<(), Failure> {
    let (width, height) = PRINTED;
    let mut terminal = Terminal::new(TestBackend::new(width, height)).map_err(Failure::failed)?;
    let screen = Screen::new(config, before, now);
    let drawn = terminal.draw(|frame| screen.draw(frame)).map_err(Failure::failed)?;
    for row in drawn.buffer.content().chunks(usize::from(width)) {
        let text: String = row.iter().map(|cell| cell.symbol()).collect();
        line!("{}", text.trim_end());
    }
    Ok(())
}

/// Shows the metrics until the user ends it. A service that is away for a while is waited for.
async fn watch(
    terminal: &mut DefaultTerminal,
    config: &Config,
    mut before: Sample,
    interval: Duration,
) -> Result<(), Failure> {
    let mut now = before.clone();
    let mut problem = None;
    loop {
        let screen = Screen::new(config, &before, &now).with_problem(problem.take());
        terminal.draw(|frame| screen.draw(frame)).map_err(Failure::failed)?;
        if is_ended_within(interval).await? {
            return Ok(());
        }
        match read(config).await {
            Ok(sample) => (before, now) = (now, sample),
            Err(reason) => problem = Some(reason),
        }
    }
}

/// Waits for the time to pass, and returns whether the user has asked to end meanwhile.
async fn is_ended_within(time: Duration) -> Result<bool, Failure> {
    let waiting = tokio::task::spawn_blocking(move || -> io::Result<bool> {
        let began = Instant::now();
        while event::poll(time.saturating_sub(began.elapsed()))? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let is_interrupt =
                        key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
                    if is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                        return Ok(true);
                    }
                }
                Event::Resize(..) => return Ok(false),
                _ => {}
            }
        }
        Ok(false)
    });
    waiting.await.map_err(Failure::failed)?.map_err(Failure::failed)
}
