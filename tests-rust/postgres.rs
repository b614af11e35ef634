//! The Postgres backend: the conformance suite, and what only this backend promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod conformance;
#[path = "postgres/connections.rs"]
mod connections;
#[path = "postgres/faults.rs"]
mod faults;
#[path = "postgres/late_commits.rs"]
mod late_commits;
#[path = "postgres/proxy.rs"]
mod proxy;
#[path = "postgres/rates.rs"]
mod rates;
#[path = "support/postgres_server.rs"]
mod server;
#[path = "postgres/sql.rs"]
mod sql;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eventbus::backend::Backend;
use eventbus::bus::open_postgres;
use eventbus::config::{Endpoint, NetConfig, PostgresConfig};

use conformance::Fixture;
use server::Address;

/// A fresh schema on a server.
struct Postgres {
    config: PostgresConfig,
}

impl Postgres {
    fn shared() -> Self {
        Self::on(server::shared())
    }

    fn on(server: &Address) -> Self {
        let net = NetConfig { username: Some("postgres".into()), ..NetConfig::default() };
        let config = PostgresConfig {
            endpoint: Endpoint::Tcp { host: "127.0.0.1".into(), port: server.port },
            net,
            schema: format!("t_{}", uuid::Uuid::new_v4().simple()),
            ..PostgresConfig::default()
        };
        Self { config }
    }

    /// Connects as any other client does.
    async fn plain(&self) -> tokio_postgres::Client {
        let Endpoint::Tcp { port, .. } = &self.config.endpoint else { panic!("no port") };
        let text = format!("host=127.0.0.1 port={port} user=postgres");
        let (client, connection) =
            tokio_postgres::connect(&text, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let path = format!("set search_path to {}", self.config.schema);
        client.batch_execute(&path).await.unwrap();
        client
    }
}

#[async_trait]
impl Fixture for Postgres {
    async fn backend(&self) -> Arc<dyn Backend> {
        let backend = open_postgres(self.config.clone()).unwrap();
        backend.connect().await.unwrap();
        backend
    }

    async fn keeping(&self, age: Option<Duration>, most: Option<u64>) -> Arc<dyn Backend> {
        let config = PostgresConfig { retention: age, retention_max: most, ..self.config.clone() };
        let backend = open_postgres(config).unwrap();
        backend.connect().await.unwrap();
        backend
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }
}

conformance!(Postgres::shared());
