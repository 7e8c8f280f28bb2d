//! HTTP: who is believed to be who.

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::{Error, Result};

/// The certificates that others are held against: those of SSL_CERT_FILE where it is set, else those that come with the binary.
///
/// # Errors
/// SSL_CERT_FILE names no file with certificates.
pub fn tls() -> Result<TlsConfig> {
    let mut tls = TlsConfig::builder();
    if let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        let pem = std::fs::read(&path).map_err(Error::io(&path, "read the certificates"))?;
        let certificates = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let certificates: Vec<_> = certificates.collect();
        if certificates.is_empty() {
            let fix = "Name a PEM file, or unset SSL_CERT_FILE";
            return Err(Error::input(std::path::Path::new(&path).display(), "has no certificate", fix));
        }
        tls = tls.root_certs(RootCerts::from(certificates));
    }
    Ok(tls.build())
}
