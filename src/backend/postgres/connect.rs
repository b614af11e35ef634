//! Connections: a socket from `net`, TLS as Postgres asks for it, and the login.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Connection};

use super::fault;
use super::meter::Messages;
use crate::config::{Endpoint, PostgresConfig};
use crate::error::{Error, Result};
use crate::guard::{Guarded, LoginGate, Room};
use crate::net::{self, Plain, Stream, Tls};

/// The connection half that must be polled.
pub(super) type Wire = Connection<Measured, Secure>;

/// A stream before TLS; without TLS, the one that the messages come on.
type Measured = Guarded<Plain, Messages>;

/// Makes connections to one server.
#[derive(Clone)]
pub(super) struct Connector {
    login: tokio_postgres::Config,
    endpoint: Endpoint,
    tls: Option<Tls>,
    timeout: Duration,
    /// How much the server may answer.
    pub(super) room: Arc<Room>,
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
        let (endpoint, room) = (socket_file(&config.endpoint), Room::new(config.largest()));
        Ok(Self { login, endpoint, tls, timeout, room })
    }

    /// Returns where the server is, for messages.
    pub(super) fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// Returns an error that names the server.
    pub(super) fn failed(&self, reason: &dyn std::fmt::Display) -> Error {
        net::failed(&self.endpoint, reason)
    }

    fn handshake(&self, gate: &Arc<LoginGate>) -> Handshake {
        let (tls, endpoint, gate) = (self.tls.clone(), self.endpoint.clone(), Arc::clone(gate));
        Handshake { tls, endpoint, gate }
    }

    /// Connects a socket whose messages are measured: here, or inside TLS.
    async fn socket(&self, gate: &Arc<LoginGate>) -> Result<Measured> {
        let plain = net::connect(&self.endpoint).await?;
        Ok(match &self.tls {
            Some(_) => Guarded::off(plain),
            None => Guarded::new(plain, Messages::default(), Arc::clone(gate)),
        })
    }

    /// Connects and logs in.
    pub(super) async fn open(&self) -> Result<(Client, Wire)> {
        let opening = async {
            let gate = LoginGate::new(&self.room);
            let socket = self.socket(&gate).await?;
            let opened = self.login.connect_raw(socket, self.handshake(&gate)).await;
            gate.open();
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
            let gate = LoginGate::new(&self.room);
            if let Ok(socket) = self.socket(&gate).await {
                // The session is given up either way.
                let _ = token.cancel_query_raw(socket, self.handshake(&gate)).await;
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
    gate: Arc<LoginGate>,
}

impl TlsConnect<Measured> for Handshake {
    type Stream = Secure;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Secure>> + Send>>;

    fn connect(self, plain: Measured) -> Self::Future {
        Box::pin(async move {
            let plain = plain.into_inner();
            let stream = match self.tls {
                Some(tls) => tls.wrap(&self.endpoint, plain).await?,
                None => Stream::Plain(plain),
            };
            Ok(Secure(Guarded::new(stream, Messages::default(), self.gate)))
        })
    }
}

/// A stream inside TLS.
pub(super) struct Secure(Guarded<Stream, Messages>);

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
