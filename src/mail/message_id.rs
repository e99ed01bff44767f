//! Message ids (RFC 5322, section 3.6.4).

use super::text::one_line;
use mail_parser::parsers::MessageStream;

/// Ids kept of References and In-Reply-To: the newest say where a thread belongs.
const MAX_REFERENCES: usize = 100;

/// Message ids of a field, without brackets and white space (RFC 5322, section 3.6.4).
pub(super) fn parse(value: &[u8]) -> Vec<String> {
    let field = [value.trim_ascii(), b"\n"].concat();
    let parsed = MessageStream::new(&field).parse_id();
    let found: Vec<String> = match (parsed.as_text_list(), parsed.as_text()) {
        (Some(list), _) => list.iter().map(|id| one_line(id)).collect(),
        (None, Some(id)) => vec![one_line(id)],
        (None, None) => Vec::new(),
    };
    let skip = found.len().saturating_sub(MAX_REFERENCES);
    found.into_iter().skip(skip).filter(|id| !id.is_empty()).collect()
}
