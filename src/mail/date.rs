//! Dates of header fields (RFC 5322, section 3.3).

use mail_parser::parsers::MessageStream;
use std::time::{Duration, SystemTime};

/// A Date value (RFC 5322, section 3.3, obsolete forms included).
pub(super) fn parse(value: &[u8]) -> Option<SystemTime> {
    let field = [value.trim_ascii(), b"\n"].concat();
    let parsed = MessageStream::new(&field).parse_date();
    let date = parsed.as_datetime().filter(|d| d.is_valid())?;
    let seconds = u64::try_from(date.to_timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
