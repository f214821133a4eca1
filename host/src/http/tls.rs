//! TLS of the listener: certificate and key from PEM files, the handshake of one connection. Not here: what is spoken
//! inside, and which authorities a client trusts.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::TlsFiles;
use crate::error::Error;

/// Certificates of one chain.
const CHAIN_CERTIFICATES_MAX: usize = 16;
/// Bytes of either file.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// The first byte of every TLS connection: a handshake record.
const HANDSHAKE_RECORD: u8 = 22;
/// What whoever speaks plain HTTP to this port is told.
const PLAIN_HTTP_ANSWER: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n\
    content-length: 124\r\n\r\n\
    {\"error\":{\"message\":\"this port speaks TLS: use https://\",\"type\":\"invalid_request_error\",\"code\":\
    \"tls_required\",\"param\":null}}";

/// What the listener needs to speak TLS; read again on SIGHUP.
pub(crate) struct Tls {
    files: TlsFiles,
    acceptor: TlsAcceptor,
    /// The reading of the files again, one at a time: a disk may take long, and connections must not wait for it.
    reading: JoinSet<Result<TlsAcceptor, Error>>,
    /// The files may have changed since they are being read.
    is_stale: bool,
}

impl Tls {
    /// Reads both files and checks that they belong together.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(crate) fn open(files: &TlsFiles) -> Result<Self, Error> {
        let acceptor = acceptor(files)?;
        Ok(Self { files: files.clone(), acceptor, reading: JoinSet::new(), is_stale: false })
    }

    /// Begins to read the files again; [`Self::reloaded`] goes on with it.
    pub(crate) fn reload(&mut self) {
        self.is_stale = true;
        self.read();
    }

    fn read(&mut self) {
        if self.is_stale && self.reading.is_empty() {
            self.is_stale = false;
            let files = self.files.clone();
            self.reading.spawn_blocking(move || acceptor(&files));
        }
    }

    /// Waits for the files, if they are being read, and puts them to use; the old ones stay if the new ones are no good.
    /// False if nothing is being read. Loses nothing when it is dropped.
    pub(crate) async fn reloaded(&mut self) -> bool {
        let Some(read) = self.reading.join_next().await else { return false };
        let read = read.unwrap_or_else(|error| Err(Error::Internal(format!("reading the TLS files: {error}"))));
        match read {
            Ok(acceptor) => {
                self.acceptor = acceptor;
                tracing::info!("the TLS certificate was read again; new connections use it");
            }
            Err(error) => tracing::error!(%error, "the TLS certificate was not replaced; the old one stays in use"),
        }
        self.read();
        true
    }

    /// For one connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }
}

/// The handshake, for at most so long. Plain HTTP is told what to do.
pub(crate) async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    time_max: Duration,
) -> io::Result<TlsStream<TcpStream>> {
    let shaking = async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first != [HANDSHAKE_RECORD] {
            return refuse_plain(stream).await;
        }
        acceptor.accept(stream).await
    };
    tokio::time::timeout(time_max, shaking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn refuse_plain(mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    stream.write_all(PLAIN_HTTP_ANSWER.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread bytes would reset the connection, and the answer with it.
    let mut unread = [0; 4096];
    for _ in 0..64 {
        stream.readable().await?;
        match stream.try_read(&mut unread) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "plain HTTP to the TLS port"))
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, Error> {
    let chain = certificates(&files.certificate_file)?;
    let key = private_key(&files.private_key_file)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Internal(format!("TLS: {error}")))?;
    let mut config = config.with_no_client_auth().with_single_cert(chain, key).map_err(|error| {
        let (certificate, key) = (files.certificate_file.display(), files.private_key_file.display());
        refused("tls.private_key_file", format!("{certificate} and {key} cannot be used together: {error}"))
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let key = "tls.certificate_file";
    let text = read(key, path)?;
    let chain: Result<Vec<_>, pem::Error> =
        CertificateDer::pem_slice_iter(&text).take(CHAIN_CERTIFICATES_MAX + 1).collect();
    let chain = chain.map_err(|error| refused(key, format!("{} is not PEM: {error}", path.display())))?;
    match chain.len() {
        0 => Err(refused(key, format!("{} holds no certificate (BEGIN CERTIFICATE)", path.display()))),
        1..=CHAIN_CERTIFICATES_MAX => Ok(chain),
        _ => Err(refused(
            key,
            format!("{} holds more than chain_certificates_max, {CHAIN_CERTIFICATES_MAX}", path.display()),
        )),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let key = "tls.private_key_file";
    let text = zeroize::Zeroizing::new(read(key, path)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let what = "an unencrypted private key (BEGIN PRIVATE KEY)";
        refused(key, format!("{} does not hold {what}: {error}", path.display()))
    })
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, Error> {
    use std::io::Read as _;
    let failed = |error: io::Error| refused(key, format!("{} cannot be read: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(refused(key, format!("{} is longer than {PEM_BYTES_MAX} bytes", path.display())));
    }
    Ok(bytes)
}

fn refused(key: &str, reason: String) -> Error {
    Error::invalid("config_invalid", key, format!("`{key}`: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::PLAIN_HTTP_ANSWER;

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let (head, body) = PLAIN_HTTP_ANSWER.split_once("\r\n\r\n").expect("a head and a body");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        assert_eq!(length.parse(), Ok(body.len()));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
