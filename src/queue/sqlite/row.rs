//! The activity as its row keeps it.
//!
//! Most text stands in the message as it is, and a row that had it twice would be written twice, each time to the log
//! and to the file. So the row's JSON has `null` there, and the row says where in the message the text stands.

use crate::activity::{Activity, Cut, Key, Raw};
use crate::queue::StorageError;
use rusqlite::types::ValueRef;

/// What stands for the text in the JSON. Within a string the quotes would be escaped, so it is found only as a member.
const NO_TEXT: &str = "\"text\":null";

/// The JSON to be kept; `text` says where the text stands in the message, if it does.
pub(super) fn json(mut activity: Activity, text: Option<Cut>) -> Result<String, StorageError> {
    if text.is_some() {
        activity.text = None;
    }
    serde_json::to_string(&activity).map_err(damaged)
}

/// The activity, and its JSON as it was accepted.
pub(super) fn whole(json: String, text: Option<&str>, raw: &Raw) -> Result<(Activity, String), StorageError> {
    let json = match text {
        None => json,
        Some(cut) => {
            let text = raw.verbatim(serde_json::from_str(cut).map_err(damaged)?);
            let text = text.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => damaged(error),
                _ => StorageError::Busy(error.to_string()),
            })?;
            let (before, after) =
                json.split_once(NO_TEXT).ok_or_else(|| damaged("the text has no place in it"))?;
            let text = serde_json::to_string(&text).map_err(damaged)?;
            [before, "\"text\":", &text, after].concat()
        }
    };
    Ok((serde_json::from_str(&json).map_err(damaged)?, json))
}

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

/// What is in the database is not what we put there.
pub(super) fn damaged(error: impl std::fmt::Display) -> StorageError {
    StorageError::Gone(format!("the queue's row is damaged: {error}"))
}
