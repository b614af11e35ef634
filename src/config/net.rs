//! Where a server is and how a connection to it is made: address, time-outs, TLS.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Problems, Secret, seconds};

/// One address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp {
        /// Host name, IPv4 or IPv6 address (without brackets).
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}

impl Endpoint {
    /// Whether it cannot leave this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix { .. } => true,
            Self::Tcp { host, .. } => {
                host == "localhost"
                    || host.parse().is_ok_and(|ip: core::net::IpAddr| ip.is_loopback())
            }
        }
    }
}

/// How TLS is spoken. Chain and host name are verified unless switched off by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// A PEM file with the authorities to trust (default: the system's).
    pub ca: Option<PathBuf>,
    /// A PEM file with the client's certificate chain.
    pub cert: Option<PathBuf>,
    /// A PEM file with the client's private key.
    pub key: Option<PathBuf>,
    /// The name the server must prove (default: the host connected to).
    pub server_name: Option<String>,
    /// Accepts any certificate: for tests only (default false).
    pub insecure_skip_verify: bool,
}

/// What every connection to a server needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// User name, when the server wants one.
    pub username: Option<String>,
    /// Password, when the server wants one.
    pub password: Option<Secret>,
    /// TLS; none = plain.
    pub tls: Option<TlsConfig>,
    /// How long making a connection may take, TLS and login included (seconds, default 5).
    #[serde(with = "seconds")]
    pub connect_timeout: Duration,
    /// How long an operation may take, reconnecting included (seconds, default 10).
    #[serde(with = "seconds")]
    pub op_timeout: Duration,
    /// How often an idle connection is proven alive; dead after two silent intervals (seconds,
    /// default 10).
    #[serde(with = "seconds")]
    pub heartbeat: Duration,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            username: None,
            password: None,
            tls: None,
            connect_timeout: Duration::from_secs(5),
            op_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(10),
        }
    }
}

impl NetConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.some_time("connect_timeout", self.connect_timeout);
        problems.some_time("op_timeout", self.op_timeout);
        problems.some_time("heartbeat", self.heartbeat);
        if let Some(tls) = &self.tls
            && tls.cert.is_some() != tls.key.is_some()
        {
            problems.add("tls_cert and tls_key must be given together".into());
        }
    }
}
