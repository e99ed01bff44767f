//! HTTP as we speak it: one connection to a system outside, with our credentials, and bounded answers.
//!
//! In: settings, requests, the time for all of it. Out: answers, whatever their status.
//! Promise: TLS 1.2 or newer by rustls; no redirect is followed; no proxy but a configured one; a token is asked for once
//! by however many need it.
//! Fails: [`CallError`], by what it says of the other side.

mod call;
mod client;
mod connection;
mod keeper;
mod oauth;
mod secret;
mod tokens;

pub use call::{CallError, body_of, chain, misread, read_whole, retry_after};
pub use client::{Client, Credentials, Settings as ClientSettings};
pub use connection::{ClientError, Connection, Settings as ConnectionSettings, send_once};
pub use keeper::{Asks, Keeper, Token};
pub use oauth::{AuthMethod, Settings as OAuthSettings};
pub use secret::{SecretFile, look_at_all};
pub use tokens::Tokens;
