//! Streams to servers: TCP or a Unix socket, kept alive, with TLS by rustls where asked for.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Endpoint, TlsConfig};
use crate::error::{Error, Result};

/// A plain connection.
#[derive(Debug)]
pub enum Plain {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// A connection to a server.
#[derive(Debug)]
pub enum Stream {
    /// Without TLS.
    Plain(Plain),
    /// With TLS.
    Tls(Box<TlsStream<Plain>>),
}

/// Connects a socket; TLS is a step of its own, as Postgres asks for it in its own protocol.
///
/// # Errors
/// `Connect` with what the network said.
pub async fn connect(endpoint: &Endpoint) -> Result<Plain> {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await;
            let stream = stream.map_err(|error| failed(endpoint, &error))?;
            keep_alive(&stream).map_err(|error| failed(endpoint, &error))?;
            Ok(Plain::Tcp(stream))
        }
        Endpoint::Unix { path } => {
            let stream = UnixStream::connect(path).await;
            Ok(Plain::Unix(stream.map_err(|error| failed(endpoint, &error))?))
        }
    }
}

/// Returns the error of a connection that could not be made.
pub fn failed(endpoint: &Endpoint, error: &dyn std::fmt::Display) -> Error {
    Error::Connect { endpoint: endpoint.to_string(), reason: error.to_string() }
}

/// A second line behind the heartbeats: the kernel notices a dead peer as well.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5));
    socket.set_tcp_keepalive(&alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))?;
    Ok(())
}

/// TLS for connections to one kind of server, its files read once.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    server_name: Option<String>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files that the options name.
    ///
    /// # Errors
    /// `Config` naming the option, the file and what is wrong with it.
    pub fn new(config: &TlsConfig) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(format!("TLS cannot be used: {error}")))?;
        let builder = if config.insecure_skip_verify {
            let trusting = Arc::new(insecure::TrustsAll(provider));
            builder.dangerous().with_custom_certificate_verifier(trusting)
        } else {
            builder.with_root_certificates(roots(config.ca.as_deref())?)
        };
        let client = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates("tls_cert", cert)?;
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| bad_file("tls_key", key, &error))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| bad_file("tls_cert", cert, &error))?
            }
            _ => builder.with_no_client_auth(),
        };
        let connector = TlsConnector::from(Arc::new(client));
        Ok(Self { connector, server_name: config.server_name.clone() })
    }

    /// Speaks TLS on a connected socket.
    ///
    /// # Errors
    /// `Connect` with what is wrong with the certificate, and the remedy.
    pub async fn wrap(&self, endpoint: &Endpoint, plain: Plain) -> Result<Stream> {
        let host = match (&self.server_name, endpoint) {
            (Some(name), _) => name.clone(),
            (None, Endpoint::Tcp { host, .. }) => host.clone(),
            (None, Endpoint::Unix { .. }) => "localhost".into(),
        };
        let name = ServerName::try_from(host).map_err(|error| failed(endpoint, &error))?;
        let wrapped = self.connector.connect(name, plain).await.map_err(|error| {
            let text = format!("TLS failed: {error}");
            let unknown = text.contains("UnknownIssuer");
            let remedy = if unknown { "; name its authority with tls_ca" } else { "" };
            failed(endpoint, &format!("{text}{remedy}"))
        })?;
        Ok(Stream::Tls(Box::new(wrapped)))
    }
}

fn wrong(problem: String) -> Error {
    Error::Config { problems: vec![problem] }
}

fn bad_file(option: &str, path: &Path, error: &dyn std::fmt::Display) -> Error {
    wrong(format!("{option}={}: {error}", path.display()))
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = read.map_err(|error| bad_file(option, path, &error))?;
    if found.is_empty() {
        return Err(bad_file(option, path, &"no certificate in it"));
    }
    Ok(found)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let Some(path) = ca else {
        let native = rustls_native_certs::load_native_certs();
        store.add_parsable_certificates(native.certs);
        if store.is_empty() {
            return Err(wrong("the system has no certificate authorities; give tls_ca".into()));
        }
        return Ok(store);
    };
    for certificate in certificates("tls_ca", path)? {
        store.add(certificate).map_err(|error| bad_file("tls_ca", path, &error))?;
    }
    Ok(store)
}

/// What `insecure_skip_verify` switches on.
mod insecure {
    use std::sync::Arc;

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    pub(super) struct TrustsAll(pub(super) Arc<CryptoProvider>);

    impl ServerCertVerifier for TrustsAll {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.0.signature_verification_algorithms;
            verify_tls12_signature(message, cert, signed, known)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let known = &self.0.signature_verification_algorithms;
            verify_tls13_signature(message, cert, signed, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}

/// Passes reads and writes on to what each variant holds.
macro_rules! stream {
    ($name:ident: $($variant:ident),+) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_read(context, buffer),)+
                }
            }
        }

        impl AsyncWrite for $name {
            fn poll_write(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_write(context, bytes),)+
                }
            }

            fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_flush(context),)+
                }
            }

            fn poll_shutdown(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    $(Self::$variant(inner) => Pin::new(inner).poll_shutdown(context),)+
                }
            }
        }
    };
}

stream!(Plain: Tcp, Unix);
stream!(Stream: Plain, Tls);
