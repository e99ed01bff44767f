//! Flowed text.
pub(super) fn unflow(text: &str, _delsp: bool) -> String {
    text.to_owned()
}
