//! Where bearer tokens come from (RFC 6750): a file, an authorization server, others later.

use super::call::CallError;
use async_trait::async_trait;
use std::fmt;

/// A source of bearer tokens. A trait because each business system has its own.
#[async_trait]
pub trait Tokens: fmt::Debug + Send + Sync {
    /// The token to show; `refused` is one that was not taken, and which is given again only if there is no other.
    /// # Errors
    /// [`CallError`]: none can be had now, or at all.
    async fn token(&self, refused: Option<&str>) -> Result<String, CallError>;
}
