//! The conformance suite over the Redis backend, on a private server per test.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod conformance;
#[path = "redis/kept.rs"]
mod kept;
#[path = "redis/messages.rs"]
mod messages_index;
#[path = "support/redis_server.rs"]
mod redis_server;
#[path = "redis/servers.rs"]
mod servers;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use eventbus::backend::Backend;
use eventbus::backend::redis::RedisBackend;
use eventbus::config::RedisConfig;

use self::conformance::Fixture;
use self::redis_server::RedisServer;

/// A server of the test's own.
struct OnRedis(RedisServer);

#[async_trait]
impl Fixture for OnRedis {
    async fn backend(&self) -> Arc<dyn Backend> {
        let backend = RedisBackend::new(self.0.config()).unwrap();
        backend.connect().await.unwrap();
        Arc::new(backend)
    }

    async fn keeping(&self, age: Option<Duration>, most: Option<u64>) -> Arc<dyn Backend> {
        let config = RedisConfig { retention: age, retention_max: most, ..self.0.config() };
        let backend = RedisBackend::new(config).unwrap();
        backend.connect().await.unwrap();
        Arc::new(backend)
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }
}

conformance!(OnRedis(RedisServer::start()));
