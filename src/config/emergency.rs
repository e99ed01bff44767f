//! `[emergency]`: levers for the night, taken over at a reload.
//!
//! In: the table, as written. Out: [`Emergency`], validated.
//! Fails: [`SourceError`], at what is neither address, domain nor network.

use super::reading::Reading;
use crate::rules::{Block, Emergency, Who};
use crate::source::SourceError;
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// `[emergency]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EmergencyText {
    /// Integration recipients are answered 451 4.3.2 [emergency] at RCPT, by LMTP too; other mail passes. Default false.
    defer: bool,
    /// The same for some: see its table.
    block: BlockText,
}

/// `[emergency.block]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct BlockText {
    /// Envelope senders: `mallory@example.com`, or `example.com` for all of a domain (without its subdomains); default
    /// none.
    senders: Vec<Spanned<String>>,
    /// SMTP clients: `192.0.2.0/24` or `2001:db8::1`; default none.
    networks: Vec<Spanned<String>>,
    /// Tenants, by prefix or by the directory's id; default none.
    tenants: Vec<Spanned<String>>,
    /// `defer` (default): 451 [emergency], the sender's server tries again. `refuse`: 550 [blocked].
    answer: AnswerText,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum AnswerText {
    #[default]
    Defer,
    Refuse,
}

impl EmergencyText {
    pub(super) fn validate(self, source: &Reading) -> Result<Emergency, SourceError> {
        let BlockText { senders, networks, tenants, answer } = self.block;
        let who = |sender: &Spanned<String>| {
            let wrong = |error: String| {
                let expected = "write an address, or a domain for all of its addresses";
                source.error(sender.span(), format!("{error}: {expected}"))
            };
            sender.get_ref().trim().parse::<Who>().map_err(wrong)
        };
        if let Some(blank) = tenants.iter().find(|tenant| tenant.get_ref().trim().is_empty()) {
            return Err(source.error(blank.span(), "a tenant without a name: write its prefix or its id"));
        }
        if let Some(address) = tenants.iter().find(|tenant| tenant.get_ref().contains('@')) {
            let name = address.get_ref();
            let prefix = name.split('@').next().unwrap_or_default().rsplit('.').next().unwrap_or_default();
            let message =
                format!("\"{name}\" is an address: write the tenant's prefix, like \"{prefix}\", or its id");
            return Err(source.error(address.span(), message));
        }
        let lower = |tenant: Spanned<String>| {
            let name = tenant.into_inner();
            [name.trim().to_lowercase(), name.trim().to_owned()]
        };
        let emergency = Emergency {
            defer: self.defer,
            block: Block {
                senders: senders.iter().map(who).collect::<Result<_, _>>()?,
                networks: networks.iter().map(|network| source.network(network)).collect::<Result<_, _>>()?,
                // Prefixes are lower case, ids are what they are.
                tenants: tenants.into_iter().flat_map(lower).collect(),
                refuse: answer == AnswerText::Refuse,
            },
        };
        if let Some(pulled) = emergency.pulled() {
            source.warn("emergency", pulled);
        }
        Ok(emergency)
    }
}
