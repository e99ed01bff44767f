//! The key of a row.

use crate::activity::Key;
use rusqlite::types::ValueRef;

/// The key of a row. Rows of older versions have its text.
pub(super) fn key_of(value: ValueRef<'_>) -> Key {
    match value {
        ValueRef::Blob(bytes) if bytes.len() == 32 => {
            let mut key = [0; 32];
            key.copy_from_slice(bytes);
            Key::from_bytes(key)
        }
        ValueRef::Text(text) | ValueRef::Blob(text) => {
            Key::from_stored(String::from_utf8_lossy(text).into_owned())
        }
        _ => Key::from_stored(String::new()),
    }
}
