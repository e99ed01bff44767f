//! HTML as text.
pub(super) fn to_text(html: &str) -> String {
    mail_parser::decoders::html::html_to_text(html)
}
pub(super) fn meta_charset(_bytes: &[u8]) -> Option<String> {
    None
}
pub(super) fn from_text(text: &str) -> String {
    text.to_owned()
}
