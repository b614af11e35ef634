//! The memory backend: the conformance suite by a clock turned by hand and by the real one, and
//! what only this backend promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "support/actions.rs"]
mod actions;
mod conformance;
#[path = "support/faults.rs"]
mod faults;
#[path = "support/model.rs"]
mod model;
#[path = "support/random.rs"]
mod random;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use eventbus::backend::memory::MemoryBackend;
use eventbus::backend::{Backend, ClaimRequest, DeadReason, Op, Outcome, Transaction};
use eventbus::clock::{ManualClock, SystemClock};
use eventbus::config::MemoryConfig;
use eventbus::error::Error;

use faults::{Faults, Strike};

use conformance::{Case, Fixture, LONG, TICK, body, in_time, put, retry_after};

/// The memory backend by a clock turned by hand.
struct Manual {
    clock: ManualClock,
    config: MemoryConfig,
}

impl Manual {
    fn new() -> Self {
        Self::with(MemoryConfig::default())
    }

    fn with(config: MemoryConfig) -> Self {
        Self { clock: ManualClock::new(1_700_000_000_000_000), config }
    }
}

#[async_trait]
impl Fixture for Manual {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(MemoryBackend::new(self.config.clone(), Arc::new(self.clock.clone())))
    }

    async fn keeping(&self, age: Option<Duration>, most: Option<u64>) -> Arc<dyn Backend> {
        let config = MemoryConfig { retention: age, retention_max: most, ..self.config.clone() };
        Arc::new(MemoryBackend::new(config, Arc::new(self.clock.clone())))
    }

    async fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }
}

/// The memory backend by the real clock: shows that the suite itself is fit for servers.
struct Real;

#[async_trait]
impl Fixture for Real {
    async fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(MemoryBackend::new(MemoryConfig::default(), Arc::new(SystemClock)))
    }

    async fn keeping(&self, age: Option<Duration>, most: Option<u64>) -> Arc<dyn Backend> {
        let config =
            MemoryConfig { retention: age, retention_max: most, ..MemoryConfig::default() };
        Arc::new(MemoryBackend::new(config, Arc::new(SystemClock)))
    }

    async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }
}

conformance!(Manual::new());

mod real_time {
    use super::*;

    conformance!(Real);
}

/// Polls a future once; it must complete.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it did not complete at its first poll"),
    }
}

#[tokio::test]
async fn every_call_but_the_waits_completes_at_its_first_poll() {
    let fixture = Manual::new();
    let case = Case::new(&fixture).await;
    let group = at_once(case.group("g", &[case.on("t")]));
    at_once(case.publish(case.message("t", "1")));
    let delivery = at_once(case.one(&group));
    at_once(case.bus.renew(std::slice::from_ref(&delivery.lease), LONG));
    at_once(case.ack(&delivery));
    at_once(case.stats(&group));
    at_once(case.bus.dead_letters(&group, None, 1)).unwrap();
    at_once(case.bus.purge(&group)).unwrap();
    at_once(case.bus.delete_group(&group)).unwrap();
    at_once(case.bus.close()).unwrap();
}

#[tokio::test]
async fn a_lease_that_merely_ran_out_still_settles() {
    for outcome in [Outcome::Ack, Outcome::Release, retry_after(TICK)] {
        let fixture = Manual::new();
        let case = Case::new(&fixture).await;
        let group = case.group("g", &[case.on("t")]).await;
        case.publish_all("t", &["1"]).await;
        let short = ClaimRequest { lease: TICK, ..case.request(&group, 1) };
        let delivery = case.bus.claim(&short).await.unwrap().remove(0);
        case.advance(TICK * 10).await;
        // Publishing to the group does not take it back either.
        case.publish_all("t", &["2"]).await;
        case.settle(&delivery, outcome).await.unwrap();
        assert_eq!(case.stats(&group).await.expired_leases, 0);
    }
}

#[tokio::test]
async fn the_dedup_window_ends() {
    let fixture = Manual::new();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let mut message = case.message("t", "m");
    message.dedup_id = Some("a".into());
    assert!(!case.publish(message.clone()).await.duplicate);
    case.advance(Duration::from_secs(24 * 3600 - 1)).await;
    assert!(case.publish(message.clone()).await.duplicate);
    case.advance(Duration::from_secs(1)).await;
    assert!(!case.publish(message.clone()).await.duplicate);
    assert!(case.publish(message).await.duplicate);
    assert_eq!(case.drain(&group).await.len(), 2);
}

#[tokio::test]
async fn what_is_remembered_is_bounded() {
    let fixture = Manual::with(MemoryConfig {
        max_dedup_ids: 10,
        max_dead: 10,
        max_tombstones: 10,
        ..MemoryConfig::default()
    });
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let mut last = 0;
    for n in 0..50 {
        let mut message = case.message("t", &n.to_string());
        message.dedup_id = Some(n.to_string().into());
        case.publish(message).await;
        let delivery = case.one(&group).await;
        case.reject(&delivery, "no").await;
        let key = case.key(&n.to_string());
        let delete = Op::Delete { key: key.clone(), if_version: None };
        let done = case.commit(vec![put(&key, "v", None), delete]).await.unwrap();
        last = last.max(done.versions[0]);
    }
    let letters = case.bus.dead_letters(&group, None, 99).await.unwrap();
    assert_eq!((letters.len(), &letters[0].body[..]), (10, &b"40"[..]));
    assert_eq!(case.stats(&group).await.removed, 40);
    // A forgotten key starts above every version it may have had.
    let done = case.commit(vec![put(&case.key("0"), "v", Some(0))]).await.unwrap();
    assert!(done.versions[0] > 1 && done.versions[0] <= last + 1, "{done:?}");
    case.advance(Duration::from_secs(14 * 24 * 3600)).await;
    assert!(case.bus.dead_letters(&group, None, 99).await.unwrap().is_empty());
    assert_eq!(case.stats(&group).await.removed, 50);
}

#[tokio::test]
async fn letters_of_expired_messages_are_bounded_without_anybody_looking() {
    let fixture = Manual::with(MemoryConfig { max_dead: 10, ..MemoryConfig::default() });
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    for _ in 0..50 {
        let mut message = case.message("t", &"x".repeat(100));
        message.expires_after = Some(TICK);
        case.publish(message).await;
        case.advance(TICK).await;
    }
    let text = format!("{:?}", case.bus);
    assert_eq!(text.matches("reason: Expired").count(), 10);
    let stats = case.stats(&group).await;
    assert_eq!((stats.dead, stats.removed), (10, 40));
}

#[tokio::test]
async fn retrying_dead_letters_respects_limit_unique_key_and_binding() {
    let fixture = Manual::new();
    let case = Case::new(&fixture).await;
    let group = case.limited("g", &[case.on("t"), case.on("u")], Some(2)).await;
    let unique = |body| {
        let mut message = case.message("t", body);
        message.unique = Some("k".into());
        message
    };
    let first = unique("1");
    case.publish(first.clone()).await;
    let delivery = case.one(&group).await;
    case.reject(&delivery, "no").await;
    case.publish(unique("2")).await;
    // The key is taken: the letter stays where it is.
    assert_eq!(case.bus.retry_dead(&group, &[first.id]).await.unwrap(), 0);
    case.publish_all("u", &["3"]).await;
    let full = case.bus.retry_dead(&group, &[first.id]).await;
    assert!(matches!(full, Err(Error::QueueFull { .. })), "{full:?}");
    case.drain(&group).await;
    case.bus.unbind(&group, &[case.on("t")]).await.unwrap();
    assert_eq!(case.bus.retry_dead(&group, &[first.id]).await.unwrap(), 0);
    case.group("g", &[case.on("t")]).await;
    assert_eq!(case.bus.retry_dead(&group, &[first.id]).await.unwrap(), 1);
    assert_eq!(case.drain(&group).await, ["1"]);
    case.stats(&group).await;
}

#[tokio::test]
async fn a_long_queue_of_one_id_and_many_cancelled_stays_fast() {
    let fixture = Manual::new();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let message = case.message("t", "m");
    let started = std::time::Instant::now();
    let batch = (0..100_000).map(|_| Transaction { ops: vec![Op::Publish(message.clone())] });
    assert!(case.bus.commit(batch.collect()).await.iter().all(Result::is_ok));
    assert_eq!(case.drain(&group).await.len(), 1000);
    let cancel = eventbus::backend::MessageAction::Cancel;
    assert_eq!(case.bus.act_on(Some(&group), message.id, cancel).await.unwrap(), 99_000);
    assert_eq!(case.stats(&group).await.ready, 0);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn crashed_letters_of_one_key_across_bindings_keep_the_claim_going() {
    let fixture = Manual::new();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("a"), case.on("b")]).await;
    for (topic, text) in [("a", "1"), ("b", "2"), ("a", "3")] {
        case.publish(case.keyed(topic, text, "k")).await;
    }
    let short = ClaimRequest { lease: TICK, max_deliveries: 1, ..case.request(&group, 10) };
    for expected in ["1", "2", "3"] {
        let claimed = case.bus.claim(&short).await.unwrap();
        assert_eq!(claimed.iter().map(body).collect::<Vec<_>>(), [expected]);
        case.advance(TICK).await;
    }
    assert!(case.bus.claim(&short).await.unwrap().is_empty());
    let letters = case.bus.dead_letters(&group, None, 9).await.unwrap();
    assert!(letters.iter().all(|letter| letter.reason == DeadReason::Crashed));
    assert_eq!(letters.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_publishers_and_consumers_lose_and_double_nothing() {
    const EACH: u64 = 5_000;
    let case = Case::new(&Real).await;
    let group = case.group("g", &[case.on("t")]).await;
    let handled = Arc::new(AtomicU64::new(0));
    let mut consumers = Vec::new();
    for _ in 0..4 {
        let (bus, request) = (Arc::clone(&case.bus), case.request(&group, 7));
        let handled = Arc::clone(&handled);
        consumers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            while handled.load(Ordering::Relaxed) < 4 * EACH {
                // The last claims may find that the others took everything.
                let wait = tokio::time::timeout(TICK, bus.wait_ready(&request)).await;
                wait.unwrap_or(Ok(())).unwrap();
                let claimed = bus.claim(&request).await.unwrap();
                for (n, delivery) in claimed.into_iter().enumerate() {
                    let release = n == 6 && seen.len() % 3 == 0;
                    let outcome = if release { Outcome::Release } else { Outcome::Ack };
                    let ops = vec![Op::Settle(delivery.lease.clone(), outcome)];
                    bus.commit(vec![Transaction { ops }]).await.remove(0).unwrap();
                    if !release {
                        handled.fetch_add(1, Ordering::Relaxed);
                        seen.push(delivery.lease.message);
                    }
                }
            }
            seen
        }));
    }
    let mut publishers = Vec::new();
    for _ in 0..4 {
        let bus = Arc::clone(&case.bus);
        let messages: Vec<_> = (0..EACH).map(|_| case.message("t", "m")).collect();
        publishers.push(tokio::spawn(async move {
            for message in messages {
                let ops = vec![Op::Publish(message)];
                bus.commit(vec![Transaction { ops }]).await.remove(0).unwrap();
                tokio::task::yield_now().await;
            }
        }));
    }
    for publisher in publishers {
        in_time(publisher).await.unwrap();
    }
    let mut all = HashSet::new();
    for consumer in consumers {
        for id in in_time(consumer).await.unwrap() {
            assert!(all.insert(id), "handled twice");
        }
    }
    assert_eq!(all.len() as u64, 4 * EACH);
    let stats = case.stats(&group).await;
    assert_eq!((stats.acked, stats.ready, stats.in_flight), (4 * EACH, 0, 0));
}

#[tokio::test]
async fn a_message_wakes_every_wait_that_serves_it_and_cancelled_ones_leave_nothing() {
    let fixture = Manual::new();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let request = case.request(&group, 1);
    for _ in 0..1000 {
        let wait = case.bus.wait_ready(&request);
        let mut wait = std::pin::pin!(wait);
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let text = format!("{:?}", case.bus);
    assert!(!text.contains("Waiter {"), "a cancelled wait is still registered");
    let waits = [case.bus.wait_ready(&request), case.bus.wait_ready(&request)];
    let [mut a, mut b] = waits;
    let mut context = Context::from_waker(Waker::noop());
    assert!(
        a.as_mut().poll(&mut context).is_pending() && b.as_mut().poll(&mut context).is_pending()
    );
    case.publish_all("t", &["1"]).await;
    in_time(a).await.unwrap();
    in_time(b).await.unwrap();
}

#[tokio::test]
async fn a_publish_whose_answer_was_lost_is_tried_again_without_a_double() {
    let fixture = Manual::new();
    let inner = fixture.backend().await;
    let faults = Arc::new(Faults::new(inner));
    let mut case = Case::new(&fixture).await;
    case.bus = Arc::clone(&faults) as Arc<dyn Backend>;
    let group = case.group("g", &[case.on("t")]).await;
    let mut message = case.message("t", "m");
    message.dedup_id = Some("once".into());
    faults.plan("commit", 1, Strike::Before);
    faults.plan("commit", 2, Strike::After);
    let mut outcomes = Vec::new();
    let done = loop {
        match case.commit(vec![Op::Publish(message.clone())]).await {
            Ok(done) => break done,
            Err(error) if error.is_retryable() => outcomes.push(error.outcome_unknown()),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(outcomes, [false, true]);
    assert!(done.published[0].duplicate);
    assert_eq!(case.drain(&group).await, ["m"]);
}
