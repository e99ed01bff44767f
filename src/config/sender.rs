//! `[sender]`: whom the service believes about who sent a message.
//!
//! In: the table, as written. Out: [`Trust`], and how we verify ourselves, validated.
//! Fails: [`SourceError`], at what is no network, no authserv-id or no host, and at `verify` where the program cannot.

use super::reading::Reading;
use crate::rules::{Logins, Trust};
use crate::source::SourceError;
use crate::verify;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use toml::Spanned;

/// Where name servers listen (RFC 1035, section 4.2).
const DOMAIN: u16 = 53;

/// `[sender]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SenderText {
    /// SMTP clients that are believed, like `192.0.2.0/24` or `2001:db8::1`: whoever sends from there is who he says;
    /// default none.
    trusted_networks: Vec<Spanned<String>>,
    /// `address` (default): a SASL login that is an address counts for the user with that address, by whichever of his
    /// addresses he writes. `any`: a login that is no address counts for every user too.
    logins: LoginsText,
    /// Names that the filters before us write into `Authentication-Results` (RFC 8601), like `mx.example.com`; the fields
    /// of others count for nothing; default none. `activity-milter postfix print` writes the line that removes forged ones.
    trusted_authserv_ids: Vec<Spanned<String>>,
    /// LMTP knows no login. The host name (`myhostname`) of the Postfix that took the message: its topmost `Received`
    /// field names the login, with `smtpd_sasl_authenticated_header = yes` there; default none.
    received_by: Option<Spanned<String>>,
    /// `true`: DKIM, SPF and DMARC of integration mail are verified here too, where the answer depends on it, as one more
    /// trusted filter; default `false`. Only in a program that was built with `cargo build --features verify`.
    verify: Option<Spanned<bool>>,
    /// The name server that `verify` asks, like `127.0.0.1` or `127.0.0.1:5353`; default those of `/etc/resolv.conf`.
    name_server: Option<Spanned<String>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum LoginsText {
    #[default]
    Address,
    Any,
}

impl SenderText {
    /// How we verify ourselves, if we do.
    pub(super) fn verify(&self, source: &Reading) -> Result<Option<verify::Settings>, SourceError> {
        let name_server = self.name_server.as_ref().map(|server| {
            let text = server.get_ref().trim();
            let address =
                text.parse().or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, DOMAIN)));
            let expected = "write an IP address, with a port if it is not 53, like \"127.0.0.1\"";
            address
                .map_err(|_| source.error(server.span(), format!("\"{text}\" is no name server: {expected}")))
        });
        let name_server = name_server.transpose()?;
        match &self.verify {
            Some(verify) if *verify.get_ref() && !verify::IS_BUILT_IN => {
                let why = "this program cannot verify: build it with `cargo build --release --features verify`, or \
                           have a filter before us do it (docs/operations.md)";
                Err(source.error(verify.span(), why))
            }
            Some(verify) if *verify.get_ref() => Ok(Some(verify::Settings { name_server })),
            Some(_) | None => Ok(None),
        }
    }

    pub(super) fn validate(self, source: &Reading) -> Result<Trust, SourceError> {
        let networks = self.trusted_networks.iter().map(|network| source.network(network));
        let networks: Vec<ipnet::IpNet> = networks.collect::<Result<_, _>>()?;
        if networks.iter().any(|network| network.prefix_len() == 0) {
            let why =
                "is everybody, so whoever writes a user's address counts as him: name your own networks";
            source.warn("sender.trusted_networks", format!("a network of all addresses {why}"));
        }
        let id = |id: &Spanned<String>| {
            let text = id.get_ref().trim();
            let is_word = |c: char| !c.is_whitespace() && !c.is_control() && !"()<>;,\"\\/={}$".contains(c);
            match !text.is_empty() && text.chars().all(is_word) {
                true => Ok(text.to_ascii_lowercase()),
                false => {
                    let expected = "write what the filter writes first in the field, like \"mx.example.com\"";
                    Err(source.error(id.span(), format!("\"{text}\" is no authserv-id: {expected}")))
                }
            }
        };
        let authserv_ids = self.trusted_authserv_ids.iter().map(id).collect::<Result<_, _>>()?;
        let host = |host: Spanned<String>| {
            let text = host.get_ref().trim().to_lowercase();
            match !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
                true => Ok(text),
                false => {
                    let expected = "write what `postconf -h myhostname` says";
                    Err(source.error(host.span(), format!("\"{text}\" is no host name: {expected}")))
                }
            }
        };
        let received_by = self.received_by.map(host).transpose()?;
        let logins = match self.logins {
            LoginsText::Address => Logins::Address,
            LoginsText::Any => Logins::Any,
        };
        Ok(Trust { networks, logins, authserv_ids, received_by })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::source::Source;
    use std::path::Path;

    fn read(lines: &str) -> Result<Config, String> {
        let text = format!(
            "integration_domains = [\"a.test\"]\n[directory]\npath = \"tests/directory.toml\"\n[backend]\nurl = \"https://b.test\"\n[sender]\n{lines}\n"
        );
        let source = Source::from_text(Path::new("am.toml"), &text);
        Config::from_source(&source).map_err(|error| error.to_string())
    }

    #[test]
    fn who_is_believed_is_read_or_named() {
        let trust = read(
            "trusted_networks = [\"192.0.2.0/24\", \"2001:db8::1\"]\nlogins = \"any\"\ntrusted_authserv_ids = [\"MX.Test\"]\nreceived_by = \"MX.test\"",
        );
        let trust = trust.unwrap().policy.trust;
        assert_eq!((trust.networks.len(), trust.logins), (2, crate::rules::Logins::Any));
        assert_eq!(
            (trust.authserv_ids, trust.received_by),
            (vec!["mx.test".to_owned()], Some("mx.test".to_owned()))
        );
        assert_eq!(read("").unwrap().policy.trust, crate::rules::Trust::default());
        for (lines, part) in [
            ("trusted_networks = [\"x.test\"]", "\"x.test\" is no network"),
            ("trusted_authserv_ids = [\"\"]", "is no authserv-id"),
            ("trusted_authserv_ids = [\"mx test\"]", "is no authserv-id"),
            ("trusted_authserv_ids = [\"mx.test;\"]", "is no authserv-id"),
            ("trusted_authserv_ids = [\"$mydomain\"]", "is no authserv-id"),
            ("received_by = \"mx test\"", "is no host name"),
            ("logins = \"all\"", "logins"),
            ("name_server = \"ns.test\"", "is no name server"),
            ("name_server = \"127.0.0.1:x\"", "is no name server"),
        ] {
            let error = read(lines).unwrap_err();
            assert!(error.contains(part), "{lines}: {error}");
        }
        for (lines, server) in [
            ("verify = true", None),
            ("verify = true\nname_server = \"127.0.0.1\"", Some("127.0.0.1:53")),
            ("verify = true\nname_server = \"[::1]:5353\"", Some("[::1]:5353")),
        ] {
            let server = server.map(|server| server.parse().unwrap());
            match (read(lines), crate::verify::IS_BUILT_IN) {
                (Ok(config), true) => assert_eq!(config.verify.unwrap().name_server, server),
                (Err(error), false) => assert!(error.contains("this program cannot verify"), "{error}"),
                (read, _) => panic!("{lines}: {:?}", read.map(|config| config.verify)),
            }
        }
        assert_eq!(read("verify = false").unwrap().verify, None);
        let warnings = read("trusted_networks = [\"0.0.0.0/0\"]").unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.contains("is everybody")), "{warnings:?}");
    }
}
