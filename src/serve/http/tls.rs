//! TLS: a certificate and its key from files, which can be read again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::job::JobError;

/// A certificate and its key.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    now: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads both files.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the file that cannot be used.
    pub fn read(certificate: &Path, key: &Path) -> Result<Tls, JobError> {
        let now = RwLock::new(config(certificate, key)?);
        Ok(Tls { certificate: certificate.to_owned(), key: key.to_owned(), now })
    }

    /// Reads both files again. If they cannot be used, what was read before stays in use;
    /// connections that are there keep what they began with.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the file that cannot be used.
    pub fn reload(&self) -> Result<(), JobError> {
        let new = config(&self.certificate, &self.key)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Shakes hands.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(now).accept(stream).await
    }
}

fn config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, JobError> {
    let wrong = |flag: &str, path: &Path, what: String| {
        JobError::Usage(format!("--{flag} `{}`: {what}", path.display()))
    };
    let of_certificate = |what| wrong("tls-cert", certificate, what);
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| of_certificate(format!("cannot read certificates: {error}")))?;
    if chain.is_empty() {
        return Err(of_certificate("there is no certificate in it (it is a PEM file)".into()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| wrong("tls-key", key, format!("cannot read a private key: {error}")))?;
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| JobError::Internal(format!("cannot set TLS up: {error}")))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| {
            let key = key.display();
            of_certificate(format!("it cannot be used with the key `{key}`: {error}"))
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
