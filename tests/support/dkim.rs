//! Signs messages as a mail provider does (RFC 6376): rsa-sha256, `simple/simple`.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{rand::SystemRandom, signature};
use sha2::{Digest, Sha256};
use std::{fs, path::Path, process::Command};

/// The key of a domain, under the selector `s`.
pub struct Signer {
    domain: String,
    key: signature::RsaKeyPair,
    public: Vec<u8>,
}

impl Signer {
    /// A new key; its file is left in the directory.
    pub fn new(domain: &str, directory: &Path) -> Self {
        let file = directory.join(format!("{domain}.der"));
        let bits = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        let der = openssl(&bits, None);
        fs::write(&file, &der).unwrap();
        let public = openssl(&["pkey", "-pubout"], Some(&file));
        Self { domain: domain.to_owned(), key: signature::RsaKeyPair::from_der(&der).unwrap(), public }
    }

    /// Where its key is, and what stands there.
    pub fn record(&self) -> (String, String) {
        let name = format!("s._domainkey.{}", self.domain);
        (name, format!("v=DKIM1; k=rsa; p={}", STANDARD.encode(&self.public)))
    }

    /// The message, with lines that end in CRLF, and a signature above it.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.sign_these(&["From", "To", "Subject"], "", message)
    }

    /// The same of these fields, with further tags, each with its semicolon.
    pub fn sign_these(&self, fields: &[&str], tags: &str, message: &[u8]) -> Vec<u8> {
        let at = message.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let (head, body) = (str::from_utf8(&message[..at + 2]).unwrap(), &message[at + 4..]);
        let field = format!(
            "DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d={}; s=s; {tags}\r\n\th={};\r\n\tbh={};\r\n\tb=",
            self.domain,
            fields.join(":"),
            STANDARD.encode(Sha256::digest(body))
        );
        let of = |name: &&str| {
            let field = head.split_inclusive("\r\n").find(|line| line.starts_with(&format!("{name}: ")));
            field.expect("a field of one line")
        };
        let signed: String = fields.iter().map(of).collect::<String>() + &field;
        let mut signature = vec![0; self.key.public().modulus_len()];
        let (padding, random) = (&signature::RSA_PKCS1_SHA256, SystemRandom::new());
        self.key.sign(padding, &random, signed.as_bytes(), &mut signature).unwrap();
        [field.as_bytes(), STANDARD.encode(&signature).as_bytes(), b"\r\n", message].concat()
    }
}

/// What it writes, as DER.
fn openssl(args: &[&str], input: Option<&Path>) -> Vec<u8> {
    let mut command = Command::new("openssl");
    command.args(args).args(["-outform", "DER"]);
    if let Some(file) = input {
        command.args(["-inform", "DER", "-in"]).arg(file);
    }
    let output = command.output().expect("openssl is installed: see packaging/install-deps");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
