//! TLS to the database server.
//!
//! In: whom to believe. Out: a connector for the library.
//! Promise: where it is on, the server's certificate is for its name and signed by whom we believe; nothing goes in clear
//! when it is not (the mode is "require", and there is no other).
//! Fails: a file of certificates that cannot be read or has none.

use super::server::Tls;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::sync::Arc;
use tokio_postgres_rustls::MakeRustlsConnect;

/// The connector.
pub(super) fn connector(tls: &Tls) -> Result<MakeRustlsConnect, String> {
    let mut roots = RootCertStore::empty();
    match tls {
        Tls::Off => {}
        Tls::Verify { ca_file: Some(path) } => {
            let wrong = |error: &dyn std::fmt::Display| format!("queue.ca_file {}: {error}", path.display());
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
            if roots.is_empty() {
                return Err(wrong(&"there is no certificate in it: write it in PEM"));
            }
        }
        Tls::Verify { ca_file: None } => {
            // One that is odd is no reason to believe none.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let remedy = "install ca-certificates, or set queue.ca_file";
                return Err(format!("this machine trusts no certificates: {remedy}"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
