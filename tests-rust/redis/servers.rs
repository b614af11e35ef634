//! What only servers can do to a bus: lose its data, and have several databases; and how much of
//! them one claim brings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use eventbus::backend::redis::RedisBackend;
use eventbus::backend::{
    Backend, Broadcast, ClaimRequest, Due, GroupSpec, ListenRequest, MAX_CLAIM_BYTES, Message, Op,
    Overflow, Transaction,
};
use eventbus::config::RedisConfig;
use eventbus::error::Error;
use eventbus::topic::Binding;
use redis::cmd;

use super::conformance::{in_time, new_id};
use super::redis_server::RedisServer;

/// Longer than any test: what comes before was not found by a sweep.
const SWEEP: Duration = Duration::from_secs(60);

async fn connected(server: &RedisServer, db: i64) -> RedisBackend {
    let backend = RedisBackend::new(RedisConfig { db, sweep: SWEEP, ..server.config() }).unwrap();
    backend.connect().await.unwrap();
    backend
}

async fn flush(server: &RedisServer) {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = cmd("FLUSHALL").query_async(&mut connection).await.unwrap();
}

fn topic(name: &str) -> Binding {
    Binding::Topic(name.into())
}

fn spec(group: &str, bound: &str) -> GroupSpec {
    GroupSpec { name: group.into(), bindings: vec![topic(bound)], max_length: None }
}

fn message(name: &str, body: Vec<u8>) -> Message {
    let id = new_id();
    Message {
        id,
        topic: name.into(),
        body: Bytes::from(body),
        key: None,
        priority: 0,
        due: Due::Now,
        expires_after: None,
        dedup_id: None,
        unique: None,
        broadcast: true,
        event: id,
    }
}

async fn publish(bus: &RedisBackend, name: &str, body: Vec<u8>) -> u32 {
    let transaction = Transaction { ops: vec![Op::Publish(message(name, body))] };
    let committed = bus.commit(vec![transaction]).await.remove(0).unwrap();
    committed.published[0].queues
}

fn request(group: &str, bound: &str, max: usize) -> ClaimRequest {
    ClaimRequest {
        group: group.into(),
        bindings: Arc::from(vec![topic(bound)]),
        max,
        lease: Duration::from_secs(30),
        max_deliveries: 5,
    }
}

#[tokio::test]
async fn what_is_published_after_the_data_were_lost_is_kept_for_every_group() {
    let server = RedisServer::start();
    let (publisher, one, two) =
        (connected(&server, 0).await, connected(&server, 0).await, connected(&server, 0).await);
    one.declare_group(spec("one", "t")).await.unwrap();
    assert_eq!(publish(&publisher, "t", b"0".to_vec()).await, 1);
    // The publisher has never seen this one.
    two.declare_group(spec("two", "t")).await.unwrap();
    flush(&server).await;
    assert_eq!(publish(&publisher, "t", b"1".to_vec()).await, 2);
    for (bus, group) in [(&one, "one"), (&two, "two")] {
        let claimed = in_time(bus.claim(&request(group, "t", 10))).await.unwrap();
        let bodies: Vec<&[u8]> = claimed.iter().map(|delivery| &delivery.body[..]).collect();
        assert_eq!(bodies, [b"1"], "{group}");
    }
    for bus in [publisher, one, two] {
        bus.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_deleted_group_is_told_from_one_that_was_lost() {
    let server = RedisServer::start();
    let (bus, other) = (connected(&server, 0).await, connected(&server, 0).await);
    bus.declare_group(spec("g", "t")).await.unwrap();
    flush(&server).await;
    assert!(bus.claim(&request("g", "t", 1)).await.unwrap().is_empty());
    assert_eq!(publish(&other, "t", b"1".to_vec()).await, 1);
    other.delete_group("g").await.unwrap();
    let told = bus.claim(&request("g", "t", 1)).await.unwrap_err();
    assert!(matches!(told, Error::NotFound { .. }), "{told}");
    for bus in [bus, other] {
        bus.close().await.unwrap();
    }
}

#[tokio::test]
async fn databases_hear_nothing_of_each_other() {
    let server = RedisServer::start();
    let (one, two) = (connected(&server, 1).await, connected(&server, 2).await);
    let request = ListenRequest {
        bindings: vec![topic("t")],
        buffer: 10,
        overflow: Overflow::DropOldest,
        since: None,
    };
    let listener = two.listen(request).await.unwrap();
    publish(&one, "t", b"of one".to_vec()).await;
    publish(&two, "t", b"of two".to_vec()).await;
    let heard = in_time(listener.next(10)).await.unwrap();
    let [Broadcast::Frame { body, .. }] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!(&body[..], b"of two");
    for bus in [one, two] {
        bus.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_brings_at_most_so_many_bytes_and_one_message_at_least() {
    let server = RedisServer::start();
    let bus = connected(&server, 0).await;
    for (group, priority) in [("plain", false), ("ranked", true)] {
        bus.declare_group(spec(group, group)).await.unwrap();
        for size in [MAX_CLAIM_BYTES / 3, MAX_CLAIM_BYTES / 2, 2 * MAX_CLAIM_BYTES, 1, 1] {
            let message = message(group, vec![b'x'; size]);
            let message = Message { priority: i16::from(priority), ..message };
            let transaction = Transaction { ops: vec![Op::Publish(message)] };
            bus.commit(vec![transaction]).await.remove(0).unwrap();
        }
        let mut counts = Vec::new();
        loop {
            let claimed = in_time(bus.claim(&request(group, group, 100))).await.unwrap();
            if claimed.is_empty() {
                break;
            }
            counts.push(claimed.len());
        }
        assert_eq!(counts, [2, 1, 2], "{group}");
    }
    bus.close().await.unwrap();
}
