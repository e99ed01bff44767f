//! What the database says when it does not do it, by what the caller does next.
//!
//! In: the library's errors. Out: [`StorageError`]: "later" ([`StorageError::Busy`]) for all that another server, another
//! moment or a person puts right; everything else is ours.
//! Promise: the text never has a value that was sent (the library shows codes and the server's message, and details of
//! rows are left out), and no password.

use crate::queue::StorageError;
use tokio_postgres::{Error, error::SqlState};

/// By the class of the code (the manual of PostgreSQL, appendix A).
pub(super) fn storage_error(error: &Error) -> StorageError {
    let Some(said) = error.as_db_error() else {
        return StorageError::Busy(format!("the connection to the database: {}", whole(error)));
    };
    let code = said.code();
    let text = format!("the database says: {} ({})", said.message(), code.code());
    let is_later = matches!(&code.code()[..2], "08" | "40" | "53" | "55" | "57" | "58")
        || *code == SqlState::READ_ONLY_SQL_TRANSACTION
        // Rights and passwords: whoever changes them does it while we run.
        || matches!(&code.code()[..2], "28" | "3D")
        || *code == SqlState::INSUFFICIENT_PRIVILEGE;
    if is_later { StorageError::Busy(text) } else { StorageError::Other(text) }
}

/// Whether the connection is of no use after this: the server went, or is no primary any more.
pub(super) fn spoils(error: &Error) -> bool {
    match error.as_db_error() {
        None => true,
        Some(said) => {
            matches!(&said.code().code()[..2], "08" | "57")
                || *said.code() == SqlState::READ_ONLY_SQL_TRANSACTION
        }
    }
}

/// Whether a row was refused because there is no partition for its day.
pub(super) fn lacks_partition(error: &Error) -> bool {
    error.code() == Some(&SqlState::CHECK_VIOLATION)
}

/// Whether a function is not there.
pub(super) fn lacks_function(error: &Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_FUNCTION)
}

/// An error with its causes.
pub(super) fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
