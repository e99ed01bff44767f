//! `[[severa]]`: the companies whose activities go to Visma Severa.
//!
//! In: the tables, as written. Out: [`Company`], validated: who it is at the API, and how its activities look.
//! Fails: [`SourceError`], at the key that is wrong.

use super::{
    ModeText,
    reading::Reading,
    units::{Span, Text},
};
use crate::directory::{PolicyText, check_prefix, table};
use crate::mail::Address;
use crate::rules::Wish;
use crate::severa;
use crate::source::SourceError;
use crate::web::ConnectionSettings;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use toml::Spanned;

/// Base URL of the API.
pub(super) const PRODUCTION: &str = "https://api.severa.visma.com/rest-api";

/// Attempts of a company at a time.
pub(super) const USUAL_IN_FLIGHT: usize = 4;

/// A company, as configured.
#[derive(Clone, Debug)]
pub struct Company {
    /// Its integration address, and its id.
    pub prefix: String,
    /// Its access to the API.
    pub access: severa::Settings,
    /// Name or guid of the type that its activities get.
    pub activity_type: String,
    /// Whether mail to it is taken.
    pub active: bool,
    /// Whether its mail is only judged and logged.
    pub shadow: bool,
    /// What it expects of us, where it says so.
    pub policy: Arc<Wish>,
    /// Activities are created as done.
    pub closed: bool,
    /// Files that are shown within the text become files of the project too.
    pub inline_files: bool,
    /// Longest notes, in characters.
    pub notes_limit: usize,
    /// Further addresses of users, by a user's address or guid.
    pub aliases: BTreeMap<String, Vec<Address>>,
    /// From a lost answer to the search for what it made.
    pub settle: Duration,
}

/// `[[severa]]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeveraText {
    /// Local part of the company's integration address; also its tenant id.
    prefix: Spanned<String>,
    /// Client id of its API credentials.
    client_id: Spanned<String>,
    /// File with their secret; read again for each token.
    pub(super) client_secret_file: Spanned<PathBuf>,
    /// Activity type of its e-mails: its name in Severa, or its guid.
    activity_type: Spanned<String>,
    /// Whether its mail is taken; default true.
    #[serde(default = "yes")]
    active: bool,
    /// `live` (default) or `shadow`: its mail is decided and logged, nothing refused, recorded or deleted.
    #[serde(default)]
    mode: ModeText,
    /// What it expects, as in `[policy]`, like `{ require = "authenticated" }`; what it does not say, `[policy]` says.
    #[serde(default, deserialize_with = "table", skip_serializing_if = "PolicyText::is_empty")]
    policy: PolicyText,
    /// Activities are created as done; default true.
    #[serde(default = "yes")]
    closed: bool,
    /// Files that are shown within the text (logos, pasted pictures) become files of the project too; default false.
    #[serde(default)]
    inline_files: bool,
    /// Longest notes of an activity, in characters; default 30000. The text is cut, never the marker in the last line.
    #[serde(default = "usual_notes")]
    notes_limit: Spanned<usize>,
    /// Further addresses of users: a user's address in Severa (or guid), and a list of addresses; default none.
    #[serde(default)]
    aliases: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
    /// From a lost answer to the search for what it made; default 60 s.
    #[serde(default = "usual_settle")]
    settle: Spanned<Text<Span>>,
}

fn yes() -> bool {
    true
}

fn usual_notes() -> Spanned<usize> {
    Spanned::new(0..0, 30_000)
}

fn usual_settle() -> Spanned<Text<Span>> {
    Spanned::new(0..0, Text(Span(Duration::from_secs(60))))
}

/// The companies, each at the same API.
pub(super) fn companies(
    source: &Reading,
    texts: Vec<SeveraText>,
    connection: &ConnectionSettings,
) -> Result<Vec<Company>, SourceError> {
    let mut taken = HashMap::new();
    let mut companies = Vec::new();
    for text in texts {
        let span = text.prefix.span();
        let company = text.validate(source, connection)?;
        if taken.insert(company.prefix.clone(), ()).is_some() {
            let message = format!("prefix \"{}\" is there twice: each company has its own", company.prefix);
            return Err(source.error(span, message));
        }
        companies.push(company);
    }
    Ok(companies)
}

impl SeveraText {
    fn validate(self, source: &Reading, connection: &ConnectionSettings) -> Result<Company, SourceError> {
        let prefix = self.prefix.get_ref().to_lowercase();
        check_prefix(&prefix).map_err(|message| source.error(self.prefix.span(), message))?;
        for (text, example) in
            [(&self.client_id, "the one Severa shows"), (&self.activity_type, "\"E-mail\"")]
        {
            let is_blank = text.get_ref().trim().is_empty();
            if is_blank || text.get_ref().chars().any(char::is_control) {
                return Err(source.error(text.span(), format!("must not be empty: write {example}")));
            }
        }
        if !self.client_id.get_ref().is_ascii() {
            let message = "a client id travels in a header: printable ASCII";
            return Err(source.error(self.client_id.span(), message));
        }
        source.secret(&self.client_secret_file)?;
        let notes_limit = *self.notes_limit.get_ref();
        let settle = self.settle.get_ref().0.0;
        Ok(Company {
            prefix,
            access: severa::Settings {
                connection: connection.clone(),
                client_id: self.client_id.into_inner().trim().to_owned(),
                client_secret_file: self.client_secret_file.into_inner(),
            },
            activity_type: self.activity_type.into_inner().trim().to_owned(),
            active: self.active,
            shadow: self.mode == ModeText::Shadow,
            policy: Arc::new(self.policy.into()),
            closed: self.closed,
            inline_files: self.inline_files,
            notes_limit,
            aliases: aliases(source, self.aliases)?,
            settle,
        })
    }
}

/// Each address belongs to one user.
fn aliases(
    source: &Reading,
    texts: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
) -> Result<BTreeMap<String, Vec<Address>>, SourceError> {
    let mut taken = HashMap::new();
    let mut all = BTreeMap::new();
    for (user, texts) in texts {
        if user.get_ref().trim().is_empty() {
            return Err(source.error(user.span(), "whose? Write a user's address in Severa, or guid"));
        }
        let mut addresses = Vec::new();
        for text in texts {
            let address = Address::parse(text.get_ref()).map_err(|_| {
                let message =
                    format!("\"{}\" is no address: write one like \"anna@example.com\"", text.get_ref());
                source.error(text.span(), message)
            })?;
            if let Some(other) = taken.insert(address.folded().to_owned(), user.get_ref().clone()) {
                let message = format!("\"{}\" is an alias of \"{other}\" already", text.get_ref());
                return Err(source.error(text.span(), message));
            }
            addresses.push(address);
        }
        all.insert(user.into_inner(), addresses);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::{Config, DirectoryKind};
    use super::*;
    use crate::mail::Automatic;
    use crate::rules::{Require, Treatment};
    use crate::source::Source;
    use std::path::Path;

    type Change = Box<dyn Fn(String) -> String>;

    fn config(change: impl Fn(String) -> String) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "secret\n").unwrap();
        let text = format!(
            "integration_domains = [\"x.test\"]\n[directory]\ntype = \"severa\"\n[backend]\ntype = \"severa\"\n[[severa]]\n\
             prefix = \"MyCompany\"\nclient_id = \"id\"\nclient_secret_file = \"{}\"\nactivity_type = \"E-mail\"\n",
            secret.display()
        );
        let source = Source::from_text(Path::new("am.toml"), change(text));
        Config::from_source(&source).map_err(|error| error.to_string())
    }

    #[test]
    fn the_least_has_the_defaults_of_the_issue() {
        let config = config(|text| text).unwrap();
        let super::super::BackendKind::Severa(companies) = &config.outside.backend else { panic!() };
        let company = &companies[0];
        assert_eq!(company.prefix, "mycompany");
        assert!(company.active && !company.shadow && company.closed && !company.inline_files);
        assert_eq!((company.notes_limit, company.settle), (30_000, Duration::from_secs(60)));
        assert_eq!(company.access.connection.url.as_str(), PRODUCTION);
        assert_eq!(company.access.connection.timeout, Duration::from_secs(60));
        assert_eq!(config.courier.shares, HashMap::from([("mycompany".to_owned(), 4)]));
        assert_eq!(config.courier.max_in_flight, 4);
        let DirectoryKind::Severa(copy) = &config.outside.directory else { panic!() };
        assert_eq!(copy.path, Path::new("/var/lib/activity-milter/severa.db"));
        assert_eq!((copy.poll, copy.full_pass), (Duration::from_secs(60), Duration::from_secs(86_400)));
    }

    #[test]
    fn a_company_says_what_it_expects() {
        let config = config(|text| {
            format!(
                "{text}policy = {{ automatic = {{ bulk = \"discard\" }} }}\n[policy]\nrequire = \"authenticated\"\n"
            )
        });
        let config = config.unwrap();
        let super::super::BackendKind::Severa(companies) = &config.outside.backend else { panic!() };
        let automatic = [(Automatic::Bulk, Treatment::Discard)].into();
        assert_eq!(*companies[0].policy, Wish { automatic, ..Wish::default() });
        let policy = companies[0].policy.over(&config.policy.tenants);
        assert_eq!(policy.require, Require::Authenticated);
        assert_eq!(policy.treatment(Automatic::Bulk), Treatment::Discard);
    }

    #[test]
    fn every_mistake_says_what_would_do() {
        let add = |line: &'static str| move |text: String| format!("{text}{line}\n");
        let replace = |from: &'static str, to: &'static str| move |text: String| text.replace(from, to);
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(replace("[directory]\ntype = \"severa\"", "[directory]\npath = \"/x\"")), "together"),
            (
                Box::new(replace("[backend]\ntype = \"severa\"", "[backend]\nurl = \"https://x.test\"")),
                "together",
            ),
            (
                Box::new(|text| {
                    text.split_once("[[severa]]")
                        .map(|(_, table)| format!("{text}[[severa]]{table}"))
                        .unwrap()
                }),
                "am.toml:12:10: prefix: prefix \"mycompany\" is there twice",
            ),
            (
                Box::new(add("[queue]\npath = \"/var/lib/activity-milter/severa.db\"")),
                "directory.path is the queue's file",
            ),
            (
                Box::new(replace("[backend]\n", "[backend]\ndelivery = \"direct\"\n")),
                "does not go with Severa",
            ),
            (
                Box::new(replace("[backend]\n", "[backend]\ntoken_file = \"Cargo.toml\"\n")),
                "am.toml:5:14: token_file: backend.token_file is for our own contract",
            ),
            (
                Box::new(replace("[backend]\n", "[backend]\ninclude_raw_message = true\n")),
                "backend.include_raw_message is for our own contract",
            ),
            (Box::new(replace("[backend]\n", "[backend]\nurl = \"http://severa.test/\"\n")), "write https"),
            (
                Box::new(replace("[backend]\n", "[backend]\nurl = \"https://u:p@severa.test/\"\n")),
                "use client_secret_file in [[severa]]",
            ),
            (
                Box::new(replace("[backend]\n", "[backend]\nmax_in_flight = 0\n")),
                "0 would let nothing through",
            ),
            (Box::new(replace("MyCompany", "my..company")), "cannot be the local part"),
            (Box::new(replace("\"id\"", "\" \"")), "client_id: must not be empty"),
            (Box::new(replace("\"id\"", "\"\u{e5}\"")), "printable ASCII"),
            (Box::new(replace("\"E-mail\"", "\"\"")), "activity_type: must not be empty"),
            (Box::new(add("client_secret_file2 = \"x\"")), "unknown field `client_secret_file2`"),
            (Box::new(add("notes_limit = 100")), "notes_limit: 100 is too small: at least 500"),
            (Box::new(add("settle = \"soon\"")), "settle: \"soon\" is no time span"),
            (Box::new(add("settle = \"2h\"")), "settle: \"2h\" is too long: at most \"1h\""),
            (Box::new(add("aliases = { \" \" = [\"a@x.test\"] }")), "a user's address in Severa, or guid"),
            (
                Box::new(replace("[backend]\n", "[backend]\nurl = \"https://severa.test/?a=b\"\n")),
                "a base URL has no query",
            ),
            (Box::new(add("mode = \"dark\"")), "there is no `dark`"),
            (Box::new(add("policy = [\"none\"]")), "policy: a list stands here"),
            (Box::new(add("policy = { require = \"all\" }")), "there are none, authenticated"),
            (Box::new(add("aliases = { \"a@x.test\" = [\"b\"] }")), "\"b\" is no address"),
            (
                Box::new(add("aliases = { \"a@x.test\" = [\"c@x.test\"], \"b@x.test\" = [\"C@X.test\"] }")),
                "an alias of \"a@x.test\" already",
            ),
        ];
        for (change, expected) in cases {
            let error = config(&change).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let least =
            "integration_domains = [\"x.test\"]\n[directory]\npath = \"tests/directory.toml\"\n[backend]\n";
        for (text, expected) in [
            ("", "backend.url is missing"),
            (
                "url = \"https://x.test\"\n[[severa]]\nprefix = \"a\"\nclient_id = \"b\"\nclient_secret_file = \"Cargo.toml\"\nactivity_type = \"E\"\n",
                "set backend.type = \"severa\"",
            ),
        ] {
            let source = Source::from_text(Path::new("am.toml"), format!("{least}{text}"));
            let error = Config::from_source(&source).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let none = "integration_domains = [\"x.test\"]\n[directory]\ntype = \"severa\"\n[backend]\ntype = \"severa\"\n";
        let error =
            Config::from_source(&Source::from_text(Path::new("am.toml"), none)).unwrap_err().to_string();
        assert!(error.contains("needs a table [[severa]] for each company"), "{error}");
    }
}
