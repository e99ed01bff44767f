//! The same by mail-auth: its readers and its resolver.
//!
//! In: as [`super`]. Out: the same.
//! Promise: the body is digested as it arrives; whoever takes the time away gets nothing and leaves nothing behind.
//! Fails: [`StartError`], if there is no name server to ask.

use super::{Question, Settings, StartError, Verification, Verifier};
use crate::mail::Domain;
use crate::rules::{Finding, Method, Outcome};
use async_trait::async_trait;
use mail_auth::{
    AuthenticatedMessage, DkimOutput, DkimResult, DmarcOutput, DmarcResult, MessageAuthenticator, SpfOutput,
    SpfResult,
    common::crypto::{Algorithm, HashAlgorithm, HashContext, HashImpl, Sha256},
    dkim::{Canonicalization, canonicalize::BodyHasher},
    dmarc::verify::DmarcParameters,
    hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
        system_conf::read_system_conf,
    },
    spf::verify::SpfParameters,
};
use std::net::SocketAddr;

/// Signatures of one message that are looked at. Each costs questions and an RSA operation; real mail has one to four.
const MOST_SIGNATURES: usize = 10;

/// Asks name servers.
pub(super) struct Own(MessageAuthenticator);

impl Own {
    /// Somebody who asks by these settings.
    /// # Errors
    /// No name server is named anywhere.
    pub(super) fn new(settings: &Settings) -> Result<Self, StartError> {
        let (config, options) = match settings.name_server {
            Some(server) => (only(server), ResolverOpts::default()),
            None => read_system_conf().map_err(|error| StartError(error.to_string()))?,
        };
        let resolver = MessageAuthenticator::new(config, options);
        resolver.map(Self).map_err(|error| StartError(error.to_string()))
    }
}

/// One name server, at its port.
fn only(server: SocketAddr) -> ResolverConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    let server = NameServerConfig::new(server.ip(), true, connections.into());
    ResolverConfig::from_parts(None, Vec::new(), vec![server])
}

impl Verifier for Own {
    fn begin(&self, mut question: Question) -> Box<dyn Verification> {
        // The empty line that ends a header.
        question.head.extend_from_slice(b"\r\n");
        let digests = read(&question.head).map_or_else(Vec::new, |message| digests_of(&message));
        Box::new(Running { resolver: self.0.clone(), question, digests })
    }
}

/// A message under way.
struct Running {
    resolver: MessageAuthenticator,
    question: Question,
    digests: Vec<Digest>,
}

/// The body as some signatures see it.
struct Digest {
    form: Canonicalization,
    hasher: BodyHasher<<Sha256 as HashImpl>::Context>,
}

/// The head, with signatures that may count.
fn read(head: &[u8]) -> Option<AuthenticatedMessage<'_>> {
    // Strict: a signature of a part of the body (`l=`) is none, for anybody may write behind it.
    let mut message = AuthenticatedMessage::parse_with_opts(head, None, true)?;
    message.dkim_headers.retain(|signature| {
        let signature = &signature.header;
        // SHA-1 is no digest any more (RFC 8301, section 3.1), and From has to be signed (RFC 6376, section 5.4).
        let names_from = signature.h.iter().any(|name| name.eq_ignore_ascii_case("from"));
        signature.a != Algorithm::RsaSha1 && names_from
    });
    message.dkim_headers.truncate(MOST_SIGNATURES);
    Some(message)
}

fn digests_of(message: &AuthenticatedMessage<'_>) -> Vec<Digest> {
    let is_seen = |form| message.dkim_headers.iter().any(|signature| signature.header.cb == form);
    let forms =
        [Canonicalization::Simple, Canonicalization::Relaxed].into_iter().filter(|form| is_seen(*form));
    forms.map(|form| Digest { form, hasher: BodyHasher::new(Sha256::hasher(), form, 0) }).collect()
}

#[async_trait]
impl Verification for Running {
    fn wants_body(&self) -> bool {
        !self.digests.is_empty()
    }

    fn body(&mut self, piece: &[u8]) {
        for digest in &mut self.digests {
            digest.hasher.write(piece);
        }
    }

    async fn finish(self: Box<Self>) -> Vec<Finding> {
        let Self { resolver, question, digests } = *self;
        let Some(mut message) = read(&question.head) else { return Vec::new() };
        for digest in digests {
            let whole = digest.hasher.finish().0.complete().as_ref().to_vec();
            for (form, hash, _, found) in &mut message.body_hashes {
                if *form == digest.form && *hash == HashAlgorithm::Sha256 {
                    found.clone_from(&whole);
                }
            }
        }
        let signatures = resolver.verify_dkim(&message).await;
        let mut findings: Vec<Finding> = signatures.iter().filter_map(of_signature).collect();
        let sender = question.sender.as_ref().map(ToString::to_string).unwrap_or_default();
        let domain = question.sender.as_ref().map(|sender| sender.domain().as_str()).unwrap_or_default();
        let spf = match question.client {
            Some(client) if !domain.is_empty() => {
                // The name in HELO is not known here, and would be nobody's address.
                let asked = SpfParameters::verify_mail_from(client, domain, domain, &sender);
                resolver.verify_spf(asked).await
            }
            _ => SpfOutput::new(String::new()).with_result(SpfResult::None),
        };
        if let Some(sender) = &question.sender {
            findings.push(Finding::new(Method::Spf, of_spf(&spf), Some(sender.domain().clone())));
        }
        let asked = DmarcParameters {
            message: &message,
            dkim_output: &signatures,
            dkim2_output: None,
            rfc5321_mail_from_domain: domain,
            spf_output: &spf,
        };
        findings.extend(of_dmarc(&resolver.verify_dmarc(asked).await));
        findings
    }
}

/// What a signature proves; nothing if it names nobody.
fn of_signature(output: &DkimOutput<'_>) -> Option<Finding> {
    let outcome = match output.result() {
        DkimResult::Pass => Outcome::Pass,
        DkimResult::Fail(_) | DkimResult::PermError(_) => Outcome::Fail,
        DkimResult::TempError(_) => Outcome::Temporary,
        DkimResult::Neutral(_) | DkimResult::None => Outcome::Other,
    };
    Some(Finding::new(Method::Dkim, outcome, Some(Domain::parse(&output.signature()?.d).ok()?)))
}

fn of_spf(output: &SpfOutput) -> Outcome {
    match output.result() {
        SpfResult::Pass => Outcome::Pass,
        SpfResult::Fail => Outcome::Fail,
        SpfResult::TempError => Outcome::Temporary,
        SpfResult::SoftFail | SpfResult::Neutral | SpfResult::PermError | SpfResult::None => Outcome::Other,
    }
}

/// Nothing where the domain has no policy.
fn of_dmarc(output: &DmarcOutput) -> Option<Finding> {
    let outcome = match output.result() {
        DmarcResult::None => return None,
        DmarcResult::Pass => Outcome::Pass,
        DmarcResult::TempError(_) => Outcome::Temporary,
        DmarcResult::Fail(_) => Outcome::Fail,
        DmarcResult::PermError(_) => Outcome::Other,
    };
    Some(Finding::new(Method::Dmarc, outcome, Domain::parse(output.domain()).ok()))
}
