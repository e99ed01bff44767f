//! Who sent a message, by our own questions to name servers: DKIM (RFC 6376), SPF (RFC 7208), DMARC (RFC 9989).
//!
//! In: a [`Question`] (head, client, envelope sender), then the body in pieces. Out: [`Finding`]s, as a trusted filter would
//! give them.
//! Promise: nobody is asked before the end of the body, if something signed needs it; a copy of the head and a few digests
//! are in memory; only so many signatures of a message are verified.
//! Fails: never; what a name server does not say is [`crate::rules::Outcome::Temporary`].
//!
//! The program can do it if it was built with the feature `verify`.

#[cfg(feature = "verify")]
mod own;

use crate::mail::Address;
use crate::rules::Finding;
use async_trait::async_trait;
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// True if the program was built so that it can.
pub const IS_BUILT_IN: bool = cfg!(feature = "verify");

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The name server; none: those of `/etc/resolv.conf`.
    pub name_server: Option<SocketAddr>,
}

/// There is nobody to ask.
#[derive(Debug, thiserror::Error)]
#[error("sender.verify: {0}: write sender.name_server, or put one into /etc/resolv.conf")]
pub struct StartError(String);

/// Somebody who can, by these settings; nobody without any.
/// # Errors
/// No name server is named anywhere. A program that was not built so that it can knows no settings.
#[cfg(feature = "verify")]
pub fn start(settings: Option<&Settings>) -> Result<Option<Arc<dyn Verifier>>, StartError> {
    let Some(settings) = settings else { return Ok(None) };
    Ok(Some(Arc::new(own::Own::new(settings)?)))
}

/// Nobody.
/// # Errors
/// There are settings all the same.
#[cfg(not(feature = "verify"))]
pub fn start(settings: Option<&Settings>) -> Result<Option<Arc<dyn Verifier>>, StartError> {
    match settings {
        None => Ok(None),
        Some(_) => Err(StartError("this program was built without it".to_owned())),
    }
}

/// What is known of a message at the end of its header.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its bytes, each field with its line break, without the empty line.
    pub head: Vec<u8>,
    /// Who was connected.
    pub client: Option<IpAddr>,
    /// The envelope sender.
    pub sender: Option<Address>,
}

/// Somebody who can find out; a test brings its own.
pub trait Verifier: Send + Sync {
    /// Begins with a message.
    fn begin(&self, question: Question) -> Box<dyn Verification>;
}

/// One message under way.
#[async_trait]
pub trait Verification: Send + Sync {
    /// False if nothing that is signed needs the body.
    fn wants_body(&self) -> bool;

    /// The next piece of the body.
    fn body(&mut self, piece: &[u8]);

    /// Asks the name servers.
    async fn finish(self: Box<Self>) -> Vec<Finding>;
}
