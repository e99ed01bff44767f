//! Sets up tracing: one line for each event, text or JSON, on standard error.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// What suits the place: text, for now.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// Settings of the log.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Text or JSON.
    pub format: Format,
    /// Least level shown.
    pub level: tracing::Level,
}

/// Starts logging for the whole process. A second call does nothing.
pub fn start(settings: &Settings) {
    // indymilter warns of every body chunk that is answered `Continue` although no answer is sent; see
    // `intake::milter` for why that is right.
    let filter = EnvFilter::new(format!("{},indymilter=error", settings.level));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    let _ = match settings.format {
        Format::Json => builder.json().flatten_event(true).try_init(),
        Format::Text | Format::Auto => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
}
