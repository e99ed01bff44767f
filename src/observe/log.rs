//! Sets up tracing: one line for each event: journald's fields, text or JSON.

use std::{
    io::IsTerminal,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, field::RecordFields, fmt::format, layer::SubscriberExt, reload,
    util::SubscriberInitExt,
};

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// journald's protocol under systemd, else text.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// How much of an address is logged, and shown on the status page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addresses {
    /// All of it.
    #[default]
    Full,
    /// Only what stands behind the `@`.
    Domain,
    /// Nothing.
    None,
}

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Journald, text or JSON.
    pub format: Format,
    /// Least level shown.
    pub level: tracing::Level,
    /// How much of an address.
    pub addresses: Addresses,
}

static ADDRESSES: AtomicU8 = AtomicU8::new(0);

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn filter(level: tracing::Level) -> EnvFilter {
    // indymilter warns of every body chunk that is answered `Continue` although no answer is sent; see
    // `intake::milter` for why that is right.
    EnvFilter::new(format!("{level},indymilter=error"))
}

/// Starts logging for the whole process. A second call does nothing.
pub fn start(settings: &Settings) {
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    let registry = tracing_subscriber::registry().with(filter);
    let started = match (settings.format, journal(settings.format)) {
        (_, Some(journal)) => registry.with(journal).try_init(),
        (Format::Json, None) => {
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true);
            registry.with(json.with_target(false).with_writer(std::io::stderr)).try_init()
        }
        (Format::Text | Format::Auto, None) => {
            let text = tracing_subscriber::fmt::layer().fmt_fields(Fields).with_target(false);
            let ansi = std::io::stderr().is_terminal();
            registry.with(text.with_ansi(ansi).with_writer(std::io::stderr)).try_init()
        }
    };
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
    apply(settings);
}

/// Takes over what can change while we run: the level and the addresses.
pub fn apply(settings: &Settings) {
    ADDRESSES.store(settings.addresses as u8, Ordering::Relaxed);
    if let Some(handle) = FILTER.get() {
        let _ = handle.reload(filter(settings.level));
    }
}

/// journald's own protocol, if our standard error is journald's (systemd.exec(5), `$JOURNAL_STREAM`).
fn journal<S>(format: Format) -> Option<impl Layer<S>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    use std::os::unix::fs::MetadataExt;
    let stream = std::env::var("JOURNAL_STREAM").ok().filter(|_| format == Format::Auto)?;
    let (device, inode) = stream.split_once(':')?;
    let stderr = std::fs::metadata("/proc/self/fd/2").ok()?;
    let is_ours = device.parse() == Ok(stderr.dev()) && inode.parse() == Ok(stderr.ino());
    let layer = tracing_journald::layer().ok().filter(|_| is_ours)?;
    Some(layer.with_field_prefix(None).with_syslog_identifier("activity-milter".to_owned()))
}

/// Fields for people: without the event's id, which is for programs.
struct Fields;

impl<'writer> tracing_subscriber::fmt::FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: format::Writer<'writer>, fields: R) -> std::fmt::Result {
        struct Visitor<'a>(format::DefaultVisitor<'a>);
        impl tracing::field::Visit for Visitor<'_> {
            fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
                if field.name() != "message_id" {
                    self.0.record_str(field, value);
                }
            }

            fn record_error(
                &mut self,
                field: &tracing::field::Field,
                value: &(dyn std::error::Error + 'static),
            ) {
                self.0.record_error(field, value);
            }

            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.record_debug(field, value);
            }
        }
        let mut visitor = Visitor(format::DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        tracing_subscriber::field::VisitOutput::finish(visitor.0)
    }
}

/// An address as it may be shown.
pub fn shown(address: &str) -> Option<String> {
    match ADDRESSES.load(Ordering::Relaxed) {
        0 => Some(address.to_owned()),
        1 => Some(format!("...@{}", address.rsplit('@').next().unwrap_or_default())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_the_setting_says() {
        for (setting, expected) in [
            (Addresses::Domain, Some("...@x.test")),
            (Addresses::None, None),
            (Addresses::Full, Some("a@x.test")),
        ] {
            ADDRESSES.store(setting as u8, Ordering::Relaxed);
            assert_eq!(shown("a@x.test").as_deref(), expected);
        }
    }
}
