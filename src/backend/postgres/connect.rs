//! Connections: a socket from `net`, TLS as Postgres asks for it, and the login.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Connection};

use super::fault;
use crate::config::{Endpoint, PostgresConfig};
use crate::error::{Error, Result};
use crate::net::{self, Plain, Stream, Tls};

/// The connection half that must be polled.
pub(super) type Wire = Connection<Plain, Secure>;

/// Makes connections to one server.
#[derive(Clone)]
pub(super) struct Connector {
    login: tokio_postgres::Config,
    endpoint: Endpoint,
    tls: Option<Tls>,
    timeout: Duration,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(config: &PostgresConfig) -> Result<Self> {
        let mut login = tokio_postgres::Config::new();
        login.dbname(&config.database).application_name("eventbus");
        if let Some(user) = &config.net.username {
            login.user(user);
        }
        if let Some(password) = &config.net.password {
            login.password(password.reveal());
        }
        let tls = config.net.tls.as_ref().map(Tls::new).transpose()?;
        login.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Disable });
        let timeout = config.net.connect_timeout;
        Ok(Self { login, endpoint: socket_file(&config.endpoint), tls, timeout })
    }

    /// Returns where the server is, for messages.
    pub(super) fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// Returns an error that names the server.
    pub(super) fn failed(&self, reason: &dyn std::fmt::Display) -> Error {
        net::failed(&self.endpoint, reason)
    }

    fn handshake(&self) -> Handshake {
        Handshake { tls: self.tls.clone(), endpoint: self.endpoint.clone() }
    }

    /// Connects and logs in.
    pub(super) async fn open(&self) -> Result<(Client, Wire)> {
        let opening = async {
            let plain = net::connect(&self.endpoint).await?;
            let opened = self.login.connect_raw(plain, self.handshake()).await;
            opened.map_err(|error| self.failed(&fault::text(&error)))
        };
        match tokio::time::timeout(self.timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(self.failed(&format!("no connection within {:?}", self.timeout))),
        }
    }

    /// Asks the server to end what a session is doing; a failure changes nothing.
    pub(super) async fn cancel(&self, token: tokio_postgres::CancelToken) {
        let cancelling = async {
            if let Ok(plain) = net::connect(&self.endpoint).await {
                // The session is given up either way.
                let _ = token.cancel_query_raw(plain, self.handshake()).await;
            }
        };
        let _ = tokio::time::timeout(self.timeout, cancelling).await;
    }
}

/// A directory stands for the socket that a server makes in it.
fn socket_file(endpoint: &Endpoint) -> Endpoint {
    match endpoint {
        Endpoint::Unix { path } if path.is_dir() => {
            let path: PathBuf = path.join(".s.PGSQL.5432");
            Endpoint::Unix { path }
        }
        other => other.clone(),
    }
}

/// Speaks TLS once the server agreed to it.
struct Handshake {
    tls: Option<Tls>,
    endpoint: Endpoint,
}

impl TlsConnect<Plain> for Handshake {
    type Stream = Secure;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Secure>> + Send>>;

    fn connect(self, plain: Plain) -> Self::Future {
        Box::pin(async move {
            match self.tls {
                Some(tls) => Ok(Secure(tls.wrap(&self.endpoint, plain).await?)),
                None => Ok(Secure(Stream::Plain(plain))),
            }
        })
    }
}

/// A stream inside TLS.
pub(super) struct Secure(Stream);

impl TlsStream for Secure {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Secure {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Secure {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
