//! The activity as it is kept.
//!
//! Most text stands in the message as it is, and who kept it twice would write it twice, each time to the log and to the
//! tables. So the JSON that is kept has `null` there, and beside it stands where in the message the text is.
//!
//! Promise: what is read is what was accepted, byte for byte.
//! Fails: [`StorageError::Gone`] where what is kept is no activity.

use super::StorageError;
use crate::activity::{Activity, Cut, Raw};

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

/// What is in the database is not what we put there.
pub(super) fn damaged(error: impl std::fmt::Display) -> StorageError {
    StorageError::Gone(format!("the queue's row is damaged: {error}"))
}

/// There is no such row.
pub(super) fn no_more_there() -> StorageError {
    StorageError::Gone("the activity is not in the queue any more".to_owned())
}

/// Another attempt may be under way.
pub(super) fn no_more_ours() -> StorageError {
    StorageError::Busy("it is leased to us no more".to_owned())
}

/// About as many bytes as an activity's JSON will have.
pub(super) fn size_of(activity: &Activity) -> u64 {
    let text = [&activity.text, &activity.html].into_iter().flatten().map(|text| text.len()).sum::<usize>();
    (text + activity.participants.len() * 200 + activity.files.len() * 300 + 1024) as u64
}
