//! What proves that a sender is who he says.
//!
//! In: the head, the envelope, and whom the configuration trusts (`[sender]`). Out: an [`Evidence`], which answers for one
//! address and one user at a time: [`Evidence::proof`], and where nothing proves it yet, [`Evidence::may_come`].
//! Promise: a trusted field that disagrees, or cannot be read, takes a proof away and never gives one; what is kept of
//! the fields is bounded ([`MOST_RESULTS`]).
//! Fails: never; what is not clear is no proof.

use super::emergency::contains;
use crate::mail::{
    self, Address, AuthenticationResults, Domain, Envelope, Head, Intake, MethodResult, authserv_id_of,
    is_plain_host,
};
use ipnet::IpNet;
use std::{fmt, net::IpAddr};

/// Results of trusted fields that are kept, and their bytes that are read. No filter writes as many; past it, nothing
/// that any of them says counts, so that nobody can push a result out of sight.
const MOST_RESULTS: usize = 200;
const MOST_BYTES: usize = 32 * 1024;

/// Whom the service believes about senders (`[sender]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Clients whose mail is what it says.
    pub networks: Vec<IpNet>,
    /// For whom a login counts.
    pub logins: Logins,
    /// Whose Authentication-Results fields count, in lower case.
    pub authserv_ids: Vec<String>,
    /// The host whose Received field names the login at LMTP; none: no field does.
    pub received_by: Option<String>,
}

/// For whom a SASL login counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Logins {
    /// For the user with that address.
    #[default]
    Address,
    /// One that is no address counts for every user.
    Any,
}

/// What is known about the senders of a message.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The trusted network, or the machine, that the message is from.
    origin: Option<Proof>,
    login: Login,
    /// One for each trusted Authentication-Results field, and one of our own.
    fields: Vec<Vec<Finding>>,
    /// We have not asked yet, and may.
    is_asked_later: bool,
    /// False if From has two readings, or is there twice.
    from_is_clear: bool,
}

/// The SASL login.
#[derive(Clone, Debug, Default)]
enum Login {
    /// None, or one that proves nothing.
    #[default]
    Nobody,
    /// An address: a user's, or nobody's.
    Address(Address),
    /// A name that counts for every user.
    Name(String),
}

/// What somebody who is trusted found out by one of the three methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    method: Method,
    outcome: Outcome,
    /// Of which domain; none if that is not clear.
    domain: Option<Domain>,
    /// SPF of the name in HELO, which is nobody's address.
    of_helo: bool,
}

/// How it came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is who it says.
    Pass,
    /// It is not.
    Fail,
    /// A name server did not say it now; later it may.
    Temporary,
    /// Neither.
    Other,
}

/// A method of authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// RFC 7489, of the domain in From.
    Dmarc,
    /// RFC 6376, of the domain that signed.
    Dkim,
    /// RFC 7208, of the envelope sender's domain.
    Spf,
}

/// Why a sender is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The client is in a trusted network.
    Network(IpAddr),
    /// Submitted on Postfix's own machine.
    Local,
    /// Logged in.
    Login(String),
    /// A trusted filter says so.
    Result(Method, Domain),
}

/// Where a message names its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The From field.
    From,
    /// The Sender field, Resent-From, Resent-Sender.
    Sender,
    /// The SASL login.
    Login,
    /// The envelope sender.
    Envelope,
}

/// Somebody whom the message names as its sender.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Where.
    pub place: Place,
    /// By which address.
    pub address: &'a Address,
    /// The id of the user with this address, if there is one.
    pub user: Option<&'a str>,
    /// The id of the user with the login's address, if there is one.
    pub login: Option<&'a str>,
}

impl Evidence {
    /// What there is, by whom the service trusts.
    pub fn of(head: &Head, envelope: &Envelope, trust: &Trust) -> Self {
        Self {
            // What was received before comes from elsewhere: a content filter, Sieve or procmail gave it to sendmail(1).
            origin: trust.origin(envelope.client.as_deref(), envelope.is_local && head.received_fields <= 1),
            login: Login::of(envelope.login.as_deref(), trust),
            fields: fields(head, envelope, trust).unwrap_or_default(),
            is_asked_later: false,
            from_is_clear: head.from_fields == 1 && !head.from_is_ambiguous,
        }
    }

    /// The same before we have asked ourselves.
    pub fn asked_later(self) -> Self {
        Self { is_asked_later: true, ..self }
    }

    /// The same with what we have found out ourselves, as if it were one more trusted field.
    pub fn with(mut self, findings: Vec<Finding>) -> Self {
        self.fields.push(findings);
        Self { is_asked_later: false, ..self }
    }

    /// The login's address, if it is one.
    pub fn login_address(&self) -> Option<&Address> {
        match &self.login {
            Login::Address(address) => Some(address),
            Login::Nobody | Login::Name(_) => None,
        }
    }

    /// What proves a claim, if anything.
    pub fn proof(&self, claim: &Claim<'_>) -> Option<Proof> {
        self.origin.clone().or_else(|| self.login_of(claim)).or_else(|| self.result_for(claim))
    }

    /// True if what is not known now may prove it: a name server did not answer, or we have not asked yet.
    pub fn may_come(&self, claim: &Claim<'_>) -> bool {
        let domain = claim.address.domain();
        self.methods(claim).iter().any(|&method| self.may_pass(method, domain))
    }

    fn login_of(&self, claim: &Claim<'_>) -> Option<Proof> {
        let user = claim.user?;
        match &self.login {
            Login::Nobody => None,
            Login::Name(name) => Some(Proof::Login(name.clone())),
            // Whichever of his addresses he writes as.
            Login::Address(address) => (claim.login == Some(user)).then(|| Proof::Login(address.to_string())),
        }
    }

    fn result_for(&self, claim: &Claim<'_>) -> Option<Proof> {
        self.methods(claim).iter().find_map(|&method| {
            let by = self.passes(method, claim.address.domain())?;
            Some(Proof::Result(method, by.clone()))
        })
    }

    /// Those that may prove it.
    fn methods(&self, claim: &Claim<'_>) -> &'static [Method] {
        match claim.place {
            Place::From if !self.from_is_clear || self.fails_dmarc(claim.address.domain()) => &[],
            Place::From => &[Method::Dmarc, Method::Dkim, Method::Spf],
            Place::Sender => &[Method::Dkim],
            Place::Envelope => &[Method::Spf],
            Place::Login => &[],
        }
    }

    /// True if a trusted field says so, of this domain or without naming one.
    fn fails_dmarc(&self, domain: &Domain) -> bool {
        let of_it = |found: &Finding| found.domain.as_ref().is_none_or(|named| is_its(named, domain));
        let fails = |found: &Finding| found.method == Method::Dmarc && found.outcome == Outcome::Fail;
        self.fields.iter().flatten().any(|found| fails(found) && of_it(found))
    }

    /// The domain for which each trusted field says pass that speaks of it by the method.
    fn passes(&self, method: Method, domain: &Domain) -> Option<&Domain> {
        let mut fields = self.speaking(method, domain);
        let says_pass = |field: Vec<_>| says(&field, method, |found| found.passes(domain));
        let first = says_pass(fields.next()?)?;
        fields.all(|field| says_pass(field).is_some()).then_some(first.domain.as_ref()).flatten()
    }

    /// The same, if everything that is not known now were a pass.
    fn may_pass(&self, method: Method, domain: &Domain) -> bool {
        let mut fields = self.speaking(method, domain).peekable();
        let is_said = self.is_asked_later || fields.peek().is_some();
        is_said && fields.all(|field| says(&field, method, |found| found.may_pass(domain)).is_some())
    }

    /// What each trusted field says of a domain by a method; those that say nothing of it are left out: a filter may
    /// write a field for each signature and identity.
    fn speaking(&self, method: Method, domain: &Domain) -> impl Iterator<Item = Vec<&Finding>> {
        let of_it = move |found: &&Finding| found.method == method && found.speaks_of(domain);
        let fields = self.fields.iter().map(move |field| field.iter().filter(of_it).collect::<Vec<_>>());
        fields.filter(|field| !field.is_empty())
    }
}

/// What a field says by a method, if it is good.
fn says<'a>(
    field: &[&'a Finding],
    method: Method,
    is_good: impl Fn(&Finding) -> bool,
) -> Option<&'a Finding> {
    let good = field.iter().copied().find(|found| is_good(found))?;
    match method {
        // Each signature is for itself: one that is broken counts as if it were not there (RFC 6376, section 6.1).
        Method::Dkim => Some(good),
        Method::Dmarc | Method::Spf => field.iter().all(|found| is_good(found)).then_some(good),
    }
}

/// True if what passed is the address's domain or its organisational domain.
fn is_its(named: &Domain, domain: &Domain) -> bool {
    named == domain || domain.organisational().as_ref() == Some(named)
}

impl Trust {
    /// True if a field has one of our ids, but for what stands between its letters.
    fn is_disguise(&self, field: &[u8]) -> bool {
        let Some(id) = mail::disguised_authserv_id(field) else { return false };
        let is_it = |ours: &String| {
            id.strip_prefix(ours.as_str()).is_some_and(|version| version.bytes().all(|b| b.is_ascii_digit()))
        };
        self.authserv_ids.iter().any(is_it)
    }

    /// True if a host is one whose filters we may believe: by its name, or of the same organisation.
    fn is_near(&self, host: &str) -> bool {
        let organisation = |name: &str| Domain::parse(name).ok().and_then(|domain| domain.organisational());
        let theirs = organisation(host);
        self.authserv_ids.iter().any(|id| id == host || theirs.is_some() && organisation(id) == theirs)
    }

    /// The trusted network, or the machine, that a client is in.
    pub fn origin(&self, client: Option<&str>, is_local: bool) -> Option<Proof> {
        match client {
            Some(client) => {
                let client: IpAddr = client.parse().ok()?;
                contains(&self.networks, client).then_some(Proof::Network(client.to_canonical()))
            }
            // With an address, `SOURCE=LOCAL` is Postfix's `local_header_rewrite_clients`, which may be anybody, and a filter
            // on this machine that gives mail back is a local client: the address has to be trusted then.
            None => is_local.then_some(Proof::Local),
        }
    }
}

impl Login {
    fn of(name: Option<&str>, trust: &Trust) -> Self {
        match (name, trust.logins) {
            (None, _) => Self::Nobody,
            (Some(name), logins) => match (Address::parse(name), logins) {
                // With a comment, a display name or a fold it is no login that anybody gave himself.
                (Ok(address), _) if is_bare(name, &address) => Self::Address(address),
                (Ok(_), _) => Self::Nobody,
                (Err(_), Logins::Any) => Self::Name(name.to_owned()),
                (Err(_), Logins::Address) => Self::Nobody,
            },
        }
    }
}

/// HELO as far as it is known: where the door does not say it, the topmost Received field does, with question marks for what
/// is not plain.
fn helo_of(head: &Head, envelope: &Envelope) -> Option<Vec<u8>> {
    let received = || head.received.as_deref().and_then(mail::helo_of).map(<[u8]>::to_vec);
    let helo = envelope.helo.clone().map(String::into_bytes).or_else(received)?;
    is_plain_host(&helo).then_some(helo)
}

/// True if a field may have HELO in it.
fn names_helo(field: &[u8]) -> bool {
    field.windows(4).any(|word| word.eq_ignore_ascii_case(b"helo"))
}

/// True if the name is the address and nothing else.
fn is_bare(name: &str, address: &Address) -> bool {
    let domain = name.rsplit('@').next().unwrap_or_default();
    Domain::parse(domain).is_ok_and(|domain| domain == *address.domain())
        && (name.starts_with('"') || !name.contains(|c: char| c.is_whitespace() || "()<>\"".contains(c)))
}

/// What trusted fields say; none if one of them cannot be read, there is too much of it, or a stranger may have made them say
/// it.
fn fields(head: &Head, envelope: &Envelope, trust: &Trust) -> Option<Vec<Vec<Finding>>> {
    let (mut fields, mut results, mut bytes) = (Vec::new(), 0, 0);
    let is_strange = |helo: &String| !is_plain_host(helo.as_bytes());
    if trust.authserv_ids.is_empty() || !envelope.is_plain || envelope.helo.as_ref().is_some_and(is_strange) {
        return None;
    }
    let near =
        || head.authentication.hosts().iter().filter(|(host, _)| trust.is_near(host)).map(|(_, helo)| helo);
    if near().any(|helo| !is_plain_host(helo)) {
        return None;
    }
    let known: Vec<Vec<u8>> = helo_of(head, envelope).into_iter().chain(near().cloned()).collect();
    // Filters name HELO where there is no sender; by LMTP the sender may be another one by now.
    let is_named = envelope.sender.is_none() || envelope.intake == Intake::Lmtp;
    let is_unknown = is_named && known.is_empty();
    for value in head.authentication.values()? {
        if !authserv_id_of(value).is_some_and(|id| trust.authserv_ids.contains(&id)) {
            // A filter that reads it as its own has believed it, and says so in its own name.
            if trust.is_disguise(value) {
                return None;
            }
            continue;
        }
        bytes += value.len();
        if bytes > MOST_BYTES || is_unknown && names_helo(value) {
            return None;
        }
        let read = AuthenticationResults::parse(value)?;
        // What stands behind it may be of another HELO than the one we know.
        let is_known = |said: &String| known.iter().any(|helo| helo.eq_ignore_ascii_case(said.as_bytes()));
        if !known.is_empty() && !read.helo_within.iter().all(is_known) {
            return None;
        }
        let field: Vec<Finding> = read.results.iter().filter_map(Finding::of).collect();
        results += field.len();
        if results > MOST_RESULTS {
            return None;
        }
        fields.push(field);
    }
    Some(fields)
}

impl Finding {
    /// What we found out ourselves.
    pub fn new(method: Method, outcome: Outcome, domain: Option<Domain>) -> Self {
        Self { method, outcome, domain, of_helo: false }
    }

    /// True if it is about this domain, or may be: a message has one From field and one envelope sender, and its signatures
    /// are each for themselves; the name in HELO is nobody's address.
    fn speaks_of(&self, domain: &Domain) -> bool {
        match self.method {
            Method::Dmarc => true,
            Method::Spf => !self.of_helo,
            Method::Dkim => self.domain.as_ref().is_none_or(|named| is_its(named, domain)),
        }
    }

    fn passes(&self, domain: &Domain) -> bool {
        self.outcome == Outcome::Pass && self.domain.as_ref().is_some_and(|named| is_its(named, domain))
    }

    /// True if it passes, or did if a name server had answered.
    fn may_pass(&self, domain: &Domain) -> bool {
        let may_be_its = || self.domain.as_ref().is_none_or(|named| is_its(named, domain));
        self.passes(domain) || (self.outcome == Outcome::Temporary && may_be_its())
    }

    fn of(result: &MethodResult) -> Option<Self> {
        let (method, property) = match result.method.as_str() {
            "dmarc" => (Method::Dmarc, "header.from"),
            // A filter that names no `header.d` names the identity (RFC 8601, section 2.7.1).
            "dkim" if result.has("header.d") => (Method::Dkim, "header.d"),
            "dkim" => (Method::Dkim, "header.i"),
            "spf" => (Method::Spf, "smtp.mailfrom"),
            _ => return None,
        };
        let outcome = match result.result.as_str() {
            "pass" => Outcome::Pass,
            "fail" => Outcome::Fail,
            "temperror" => Outcome::Temporary,
            _ => Outcome::Other,
        };
        let domain = result.property(property).and_then(domain_in);
        let of_helo = method == Method::Spf && !result.has(property) && result.has("smtp.helo");
        Some(Self { method, outcome, domain, of_helo })
    }
}

/// A domain, or that of an address.
fn domain_in(value: &str) -> Option<Domain> {
    Domain::parse(value.rsplit('@').next()?).ok()
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dmarc => "dmarc",
            Self::Dkim => "dkim",
            Self::Spf => "spf",
        })
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(client) => write!(f, "the client {client} is in sender.trusted_networks"),
            Self::Local => f.write_str("submitted on Postfix's own machine"),
            Self::Login(name) => write!(f, "logged in as {name}"),
            Self::Result(method, domain) => write!(f, "a trusted filter says {method}=pass for {domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trust() -> Trust {
        Trust {
            networks: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            logins: Logins::Address,
            authserv_ids: vec!["mx.test".to_owned(), "mx2.test".to_owned()],
            received_by: None,
        }
    }

    fn envelope(client: Option<&str>, login: Option<&str>) -> Envelope {
        Envelope {
            sender: Address::parse("bounce@relay.test").ok(),
            recipients: Vec::new(),
            queue_id: None,
            client: client.map(str::to_owned),
            is_local: false,
            is_plain: true,
            helo: None,
            login: login.map(str::to_owned),
            intake: Intake::Milter,
        }
    }

    /// What the fields prove of `anna@x.test`, named in a place.
    fn by_fields(place: Place, address: &str, fields: &[&str]) -> String {
        let lines = fields.iter().map(|field| format!("Authentication-Results: {field}\r\n"));
        let head = format!("{}From: anna@x.test\r\nSubject: s\r\n", lines.collect::<String>());
        let head = Head::parse(head.as_bytes()).unwrap();
        let evidence = Evidence::of(&head, &envelope(Some("203.0.113.1"), None), &trust());
        let address = Address::parse(address).unwrap();
        let claim = Claim { place, address: &address, user: Some("u"), login: None };
        match evidence.proof(&claim) {
            Some(Proof::Result(method, domain)) => format!("{method} {domain}"),
            None if evidence.may_come(&claim) => "later".to_owned(),
            None => String::new(),
            Some(other) => panic!("{other}"),
        }
    }

    #[test]
    fn methods_count_for_the_places_they_speak_of() {
        const DMARC: &str = "mx.test; dmarc=pass header.from=x.test";
        const DKIM: &str = "mx.test; dkim=pass header.d=x.test";
        const SPF: &str = "mx.test; spf=pass smtp.mailfrom=anna@x.test";
        for (place, dmarc, dkim, spf) in [
            (Place::From, "dmarc x.test", "dkim x.test", "spf x.test"),
            (Place::Sender, "", "dkim x.test", ""),
            (Place::Envelope, "", "", "spf x.test"),
            (Place::Login, "", "", ""),
        ] {
            for (field, expected) in [(DMARC, dmarc), (DKIM, dkim), (SPF, spf)] {
                assert_eq!(by_fields(place, "anna@x.test", &[field]), expected, "{place:?} {field}");
            }
        }
    }

    #[test]
    fn a_domain_is_the_addresses_or_its_organisational_domain() {
        for (address, domain, passes) in [
            ("a@x.test", "x.test", true),
            ("a@x.test", "X.Test.", true),
            ("a@mail.x.test", "x.test", true),
            ("a@a.mail.x.test", "x.test", true),
            ("a@a.mail.x.test", "mail.x.test", false),
            ("a@x.test", "mail.x.test", false),
            ("a@x.test", "y.test", false),
            ("a@x.test", "test", false),
            ("a@x.test", "notx.test", false),
            ("a@x.co.uk", "co.uk", false),
            ("a@mail.x.co.uk", "x.co.uk", true),
            ("a@räksmörgås.test", "xn--rksmrgs-5wao1o.test", true),
            ("a@räksmörgås.test", "räksmörgås.test", true),
        ] {
            for (field, property) in
                [("dmarc", "header.from"), ("dkim", "header.d"), ("spf", "smtp.mailfrom")]
            {
                let field = format!("mx.test; {field}=pass {property}={domain}");
                let found = by_fields(Place::From, address, &[&field]);
                assert_eq!(!found.is_empty(), passes, "{address} {field}");
            }
        }
    }

    // W2
    #[test]
    fn fields_of_others_are_ignored_and_trusted_ones_must_agree() {
        let spf_passes = "mx.test; spf=pass smtp.mailfrom=x.test";
        let dmarc_passes = "mx.test; dmarc=pass header.from=x.test";
        for (fields, expected) in [
            (&[][..], ""),
            // Others.
            (&["evil.test; dmarc=pass header.from=x.test"][..], ""),
            (&["evil.mx.test; dmarc=pass header.from=x.test"], ""),
            (&[spf_passes, "evil.test; spf=fail smtp.mailfrom=x.test"], "spf x.test"),
            // How it is written.
            (&["MX.Test 1; DMARC=Pass Header.From=X.Test"], "dmarc x.test"),
            (
                &["(c (n)) mx.test (c); dmarc (c) = pass (p=none; dis=none) header.from=x.test"],
                "dmarc x.test",
            ),
            (&["mx.test;\r\n\tdkim=none;\r\n\tdmarc=pass\r\n\theader.from=x.test"], "dmarc x.test"),
            (&["\"mx.test\"; dmarc=pass header.from=\"x.test\""], "dmarc x.test"),
            (&["\"mx\\.test\"; dmarc=pass header.from=x.test"], ""),
            (&["mx.test 2; dmarc=pass header.from=x.test"], ""),
            (&["mx . test; dkim=pass header.d=x.test arc.chain=y", dmarc_passes], ""),
            (&["\"mx\".test; dkim=pass header.d=x.test", spf_passes], ""),
            (&["mx(c).test 1; dkim=pass header.d=x.test", spf_passes], ""),
            (&["not.mx.test (c); dkim=fail header.d=x.test", spf_passes], "spf x.test"),
            (&["mx.test; dmarc=pass header.from=x.test header.from=y.test"], ""),
            (&["mx.test; dmarc=pass"], ""),
            (&["mx.test; x-dmarc=pass header.from=x.test"], ""),
            // No pass.
            (&["mx.test; none"], ""),
            (&["mx.test; dmarc=none header.from=x.test"], ""),
            (&["mx.test; dmarc=bestguesspass header.from=x.test"], ""),
            (&["mx.test; spf=softfail smtp.mailfrom=x.test"], ""),
            (&["mx.test; dkim=fail header.d=x.test"], ""),
            (&["mx.test; dkim=policy header.d=x.test"], ""),
            // Several fields, several methods.
            (&["mx.test; none", dmarc_passes], "dmarc x.test"),
            (
                &["mx.test; dkim=pass header.d=y.test", "mx2.test; spf=pass smtp.mailfrom=x.test"],
                "spf x.test",
            ),
            (&[spf_passes, "mx2.test; spf=pass smtp.mailfrom=bo@x.test"], "spf x.test"),
            // Trusted fields that disagree.
            (&[spf_passes, "mx2.test; spf=fail smtp.mailfrom=x.test"], ""),
            (&["mx2.test; spf=none", spf_passes], ""),
            (&[spf_passes, "mx.test; spf=pass smtp.mailfrom=y.test"], ""),
            (&[spf_passes, "mx.test; spf=pass"], ""),
            // Another identity, or another signature, does not disagree.
            (&[spf_passes, "mx.test; spf=fail smtp.helo=pc.test"], "spf x.test"),
            (&["mx.test; spf=none smtp.helo=pc.test", spf_passes], "spf x.test"),
            (&["mx.test; dkim=pass header.d=esp.test", "mx.test; dkim=pass header.d=x.test"], "dkim x.test"),
            (
                &["mx.test; dkim=fail header.d=list.test", "mx2.test; dkim=pass header.d=x.test"],
                "dkim x.test",
            ),
            (&["mx.test; dkim=fail header.d=x.test", "mx2.test; dkim=pass header.d=x.test"], ""),
            (&["mx.test; dkim=none", "mx2.test; dkim=pass header.d=x.test"], ""),
            (&["mx.test; dkim=pass header.d=y.test", "mx2.test; dkim=fail header.d=x.test"], ""),
            (&[dmarc_passes, "mx2.test; dmarc=temperror header.from=x.test"], "later"),
            (&[dmarc_passes, "mx.test; dmarc=pass (never closed"], ""),
            (&["mx.test; dmarc=pass header.from=x.test; dmarc=none header.from=x.test"], ""),
            (&["mx.test; spf=pass smtp.mailfrom=x.test; spf=fail smtp.mailfrom=x.test"], ""),
            // HELO is nobody's address.
            (&["mx.test; spf=pass smtp.helo=x.test"], ""),
            (&["mx.test; spf=none smtp.helo=pc.test; spf=pass smtp.mailfrom=x.test"], "spf x.test"),
            // A failed DMARC is the domain's own word.
            (&["mx.test; dmarc=fail header.from=x.test; dkim=pass header.d=x.test"], ""),
            (&["mx.test; dmarc=fail; spf=pass smtp.mailfrom=x.test"], ""),
            (&[spf_passes, "mx2.test; dmarc=fail header.from=x.test"], ""),
            (&[spf_passes, "mx2.test; dmarc=fail header.from=y.test"], "spf x.test"),
            (&[spf_passes, "evil.test; dmarc=fail header.from=x.test"], "spf x.test"),
            // Each signature is for itself.
            (&["mx.test; dkim=fail header.d=y.test; dkim=pass header.d=x.test"], "dkim x.test"),
            (&["mx.test; dkim=fail header.d=x.test; dkim=pass header.d=x.test"], "dkim x.test"),
            (&["mx.test; dkim=pass header.i=@x.test"], "dkim x.test"),
            (&["mx.test; dkim=pass header.i=anna@x.test header.b=abc"], "dkim x.test"),
            (&["mx.test; dkim=pass header.d=y.test header.i=@x.test"], ""),
            (&["mx.test; dkim=pass header.d=x.test header.d=y.test header.i=@x.test"], ""),
        ] {
            assert_eq!(by_fields(Place::From, "anna@x.test", fields), expected, "{fields:?}");
        }
    }

    // W6
    #[test]
    fn what_a_name_server_did_not_say_may_come() {
        const SPF: &str = "mx.test; spf=temperror smtp.mailfrom=x.test";
        const DKIM: &str = "mx.test; dkim=temperror (key not available) header.d=x.test";
        for (place, fields, expected) in [
            (Place::From, &["mx.test; dmarc=temperror header.from=x.test"][..], "later"),
            (Place::From, &["mx.test; dmarc=temperror"], "later"),
            (Place::From, &["mx.test; dmarc=temperror header.from=y.test"], ""),
            (Place::From, &["mx.test; dmarc=permerror header.from=x.test"], ""),
            (Place::From, &["evil.test; dmarc=temperror header.from=x.test"], ""),
            (Place::From, &[DKIM], "later"),
            (Place::Sender, &[DKIM], "later"),
            (Place::Envelope, &[DKIM], ""),
            (Place::Envelope, &[SPF], "later"),
            (Place::Sender, &[SPF], ""),
            (Place::Login, &[DKIM, SPF], ""),
            // What is known is known.
            (Place::From, &[DKIM, "mx.test; spf=pass smtp.mailfrom=x.test"], "spf x.test"),
            (
                Place::From,
                &["mx.test; dkim=temperror header.d=y.test; dkim=pass header.d=x.test"],
                "dkim x.test",
            ),
            (Place::From, &[SPF, "mx2.test; spf=fail smtp.mailfrom=x.test"], ""),
            (Place::From, &[SPF, "mx2.test; spf=pass smtp.mailfrom=x.test"], "later"),
            (Place::From, &[DKIM, "mx2.test; dmarc=fail header.from=x.test"], ""),
        ] {
            assert_eq!(by_fields(place, "anna@x.test", fields), expected, "{place:?} {fields:?}");
        }
    }

    #[test]
    fn what_we_find_out_ourselves_is_one_more_trusted_field() {
        let x = || Domain::parse("x.test").ok();
        let pass = |method| vec![Finding::new(method, Outcome::Pass, x())];
        let of = |outcome| vec![Finding::new(Method::Dkim, outcome, x())];
        for (field, before, findings, after) in [
            ("", "later", pass(Method::Dkim), "dkim"),
            ("", "later", pass(Method::Dmarc), "dmarc"),
            ("", "later", Vec::new(), ""),
            ("", "later", of(Outcome::Fail), ""),
            ("", "later", of(Outcome::Temporary), "later"),
            ("mx.test; dkim=pass header.d=x.test", "dkim", of(Outcome::Fail), ""),
            ("mx.test; dkim=fail header.d=x.test", "later", pass(Method::Dkim), ""),
            ("mx.test; dkim=fail header.d=x.test", "later", pass(Method::Spf), "spf"),
            ("mx.test; dmarc=fail header.from=x.test", "", pass(Method::Dkim), ""),
        ] {
            let head = format!("Authentication-Results: {field}\r\nFrom: anna@x.test\r\n");
            let head = Head::parse(head.as_bytes()).unwrap();
            let evidence = Evidence::of(&head, &envelope(Some("203.0.113.1"), None), &trust()).asked_later();
            let address = Address::parse("anna@x.test").unwrap();
            let claim = Claim { place: Place::From, address: &address, user: Some("u"), login: None };
            let said = |evidence: &Evidence| match evidence.proof(&claim) {
                Some(Proof::Result(method, _)) => method.to_string(),
                Some(other) => panic!("{other}"),
                None => if evidence.may_come(&claim) { "later" } else { "" }.to_owned(),
            };
            assert_eq!(said(&evidence), before, "{field}");
            assert_eq!(said(&evidence.with(findings.clone())), after, "{field} {findings:?}");
        }
    }

    // W2
    #[test]
    fn what_a_stranger_may_have_made_a_filter_say_proves_nothing() {
        const SPF: &str = "mx.test; spf=pass smtp.mailfrom=x.test";
        const HELO: &str = "mx.test; spf=pass smtp.mailfrom=x.test smtp.helo=pc.test";
        const WITHIN: &str = "mx.test; spf=none smtp.helo=pc.test; spf=pass smtp.mailfrom=x.test";
        const OTHER: &str = "mx.test; spf=none smtp.helo=a;spf=pass(x)smtp.mailfrom=x.test;x=y";
        const PLAIN: &str = "Received: from pc.test (unknown [192.0.2.7])\r\n\tby mx.test (Postfix); Mon\r\n";
        const STRANGE: &str =
            "Received: from a?spf=pass?x (unknown [192.0.2.7])\r\n\tby mx.test (Postfix); Mon\r\n";
        const EDGE: &str = "Received: from edge.mx.test (edge.mx.test [192.0.2.8])\r\n\tby inner.test (Postfix); Mon\r\n\
            Received: from pc.test (unknown [192.0.2.7])\r\n\tby edge.mx.test (Postfix); Mon\r\n";
        const SIGNED: &str = "DKIM-Signature: d=evil.test; i=a=3Bspf=3Dpass@evil.test\r\n";
        const KNOWN: (bool, Intake) = (true, Intake::Milter);
        const NO_HELO: (bool, Intake) = (true, Intake::Lmtp);
        const STRANGE_SENDER: (bool, Intake) = (false, Intake::Milter);
        for ((is_plain, intake), field, before, passes) in [
            (KNOWN, SPF, "", true),
            (KNOWN, HELO, "", true),
            // A host whose filters we believe has heard what its Received field does not say; another one has none of ours.
            (KNOWN, SPF, "Received: from Anna?s?PC (x) by mail.isp.example with ESMTPSA\r\n", true),
            (KNOWN, SPF, "Received: from Anna?s?PC (x) by edge.mx.test with ESMTPSA\r\n", false),
            (KNOWN, HELO, STRANGE, false),
            (KNOWN, SPF, STRANGE, false),
            (KNOWN, WITHIN, "", true),
            (KNOWN, WITHIN, PLAIN, true),
            (KNOWN, OTHER, PLAIN, false),
            // The host whose filter it was has heard another name than our door.
            (NO_HELO, WITHIN, EDGE, true),
            (KNOWN, WITHIN, EDGE, true),
            (KNOWN, OTHER, EDGE, false),
            (NO_HELO, SPF, "", true),
            (NO_HELO, HELO, "", false),
            (NO_HELO, HELO, PLAIN, true),
            (NO_HELO, HELO, STRANGE, false),
            (STRANGE_SENDER, SPF, "", false),
            (STRANGE_SENDER, SPF, PLAIN, false),
            (KNOWN, SPF, SIGNED, false),
        ] {
            let head = format!("{before}Authentication-Results: {field}\r\nFrom: anna@x.test\r\n");
            let head = Head::parse(head.as_bytes()).unwrap();
            let envelope = Envelope { is_plain, intake, ..envelope(Some("203.0.113.1"), None) };
            let evidence = Evidence::of(&head, &envelope, &trust());
            let address = Address::parse("anna@x.test").unwrap();
            let claim = Claim { place: Place::From, address: &address, user: Some("u"), login: None };
            assert_eq!(evidence.proof(&claim).is_some(), passes, "{is_plain} {intake:?} {field} {before}");
        }
    }

    // W2
    #[test]
    fn too_much_proves_nothing() {
        let pass = "; spf=pass smtp.mailfrom=x.test";
        for (count, expected) in [(MOST_RESULTS, "spf x.test"), (MOST_RESULTS + 1, "")] {
            let field = format!("mx.test{}", pass.repeat(count));
            assert_eq!(by_fields(Place::From, "anna@x.test", &[&field]), expected, "{count}");
        }
        for (size, expected) in [(MOST_BYTES, "spf x.test"), (MOST_BYTES + 1, "")] {
            let (start, end) = (" mx.test (", ")");
            let comment = "x".repeat(size - start.len() - end.len() - pass.len() - "\r\n".len());
            let field = format!("{}{comment}{end}{pass}", &start[1..]);
            assert_eq!(by_fields(Place::From, "anna@x.test", &[&field]), expected, "{size}");
        }
    }

    // W2
    #[test]
    fn two_from_fields_prove_nothing() {
        for (from, passes) in [
            ("From: anna@x.test\r\n", true),
            ("From: anna@x.test\r\nFrom: anna@x.test\r\n", false),
            ("Sender: anna@x.test\r\n", false),
        ] {
            let head = format!("Authentication-Results: mx.test; dmarc=pass header.from=x.test\r\n{from}");
            let head = Head::parse(head.as_bytes()).unwrap();
            let evidence = Evidence::of(&head, &envelope(None, None), &trust());
            let address = Address::parse("anna@x.test").unwrap();
            let claim = Claim { place: Place::From, address: &address, user: Some("u"), login: None };
            assert_eq!(evidence.proof(&claim).is_some(), passes, "{from}");
        }
    }

    // W4
    #[test]
    fn logins_count_for_their_users() {
        for (login, of, logins, user, expected) in [
            (Some("anna@x.test"), Some("u-anna"), Logins::Address, Some("u-anna"), true),
            (Some("ANNA@X.test"), Some("u-anna"), Logins::Address, Some("u-anna"), true),
            (Some("anna@x.test"), Some("u-anna"), Logins::Address, Some("u-bo"), false),
            (Some("anna@x.test"), Some("u-anna"), Logins::Any, Some("u-bo"), false),
            (Some("b@other.test"), None, Logins::Address, Some("u-anna"), false),
            // A login that is an address and nobody's here is of another company.
            (Some("b@other.test"), None, Logins::Any, Some("u-anna"), false),
            (Some("anna"), None, Logins::Address, Some("u-anna"), false),
            // Written as a header field may have it, and no login.
            (Some("anna@x.test(x)"), Some("u-anna"), Logins::Any, Some("u-anna"), false),
            (Some("anna@x.test (x)"), Some("u-anna"), Logins::Address, Some("u-anna"), false),
            (Some("(x)anna@x.test"), Some("u-anna"), Logins::Any, Some("u-anna"), false),
            (Some("Anna <anna@x.test>"), Some("u-anna"), Logins::Address, Some("u-anna"), false),
            (Some("<anna@x.test>"), Some("u-anna"), Logins::Address, Some("u-anna"), false),
            (Some("anna @x.test"), Some("u-anna"), Logins::Any, Some("u-anna"), false),
            (Some(" anna@x.test"), Some("u-anna"), Logins::Any, Some("u-anna"), false),
            (Some("anna"), None, Logins::Any, Some("u-anna"), true),
            // Who is no user has no login here.
            (Some("anna"), None, Logins::Any, None, false),
            (None, None, Logins::Any, Some("u-anna"), false),
        ] {
            let head = Head::parse(b"From: anna@x.test\r\n").unwrap();
            let trust = Trust { logins, ..trust() };
            let evidence = Evidence::of(&head, &envelope(None, login), &trust);
            let address = Address::parse("anna@x.test").unwrap();
            for place in [Place::From, Place::Sender, Place::Login, Place::Envelope] {
                let found = evidence.proof(&Claim { place, address: &address, user, login: of });
                assert_eq!(found.is_some(), expected, "{login:?} {logins:?} {user:?} {place:?}");
            }
        }
    }

    #[test]
    fn trusted_networks_and_our_own_machine_count_for_everybody() {
        for (client, is_local, expected) in [
            (Some("192.0.2.7"), false, true),
            (Some("::ffff:192.0.2.7"), false, true),
            (Some("2001:db8::7"), false, true),
            (Some("203.0.113.7"), false, false),
            (None, false, false),
            (None, true, true),
            // Postfix calls whom it likes local.
            (Some("203.0.113.7"), true, false),
            (Some("127.0.0.1"), true, false),
            (Some("unknown"), true, false),
        ] {
            let head = Head::parse(b"Received: by mx.test (Postfix, from userid 0)\r\nFrom: anna@x.test\r\n")
                .unwrap();
            let envelope = Envelope { is_local, ..envelope(client, None) };
            let evidence = Evidence::of(&head, &envelope, &trust());
            let address = Address::parse("anna@x.test").unwrap();
            let claim = Claim { place: Place::From, address: &address, user: None, login: None };
            assert_eq!(evidence.proof(&claim).is_some(), expected, "{client:?} {is_local}");
        }
    }

    // W1
    #[test]
    fn what_was_received_before_is_no_submission_of_this_machine() {
        let ours = "Received: by mx.test (Postfix, from userid 99)\r\n";
        let before =
            "Received: from pc.test (pc.test [203.0.113.7])\r\n\tby mx.test (Postfix) with ESMTP id 1\r\n";
        for (fields, passes) in
            [(String::new(), true), (ours.to_owned(), true), (format!("{ours}{before}"), false)]
        {
            let head = Head::parse(format!("{fields}From: anna@x.test\r\n").as_bytes()).unwrap();
            let envelope = Envelope { is_local: true, ..envelope(None, None) };
            let evidence = Evidence::of(&head, &envelope, &trust());
            let address = Address::parse("anna@x.test").unwrap();
            let claim = Claim { place: Place::From, address: &address, user: Some("u"), login: None };
            assert_eq!(evidence.proof(&claim).is_some(), passes, "{fields}");
        }
    }
}
