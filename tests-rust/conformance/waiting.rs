//! Waiting for a claim that may succeed.

use std::sync::Arc;

use eventbus::backend::{ClaimRequest, Due, Message};
use eventbus::error::{Error, Result};
use tokio::task::JoinHandle;

use super::{Case, Fixture, TICK, in_time, still_waits};

/// Waits in a task until a claim succeeds, as a consumer does; returns what it claimed.
fn consume(case: &Case<'_>, request: ClaimRequest) -> JoinHandle<Result<usize>> {
    let bus = Arc::clone(&case.bus);
    tokio::spawn(async move {
        loop {
            bus.wait_ready(&request).await?;
            let claimed = bus.claim(&request).await?;
            if !claimed.is_empty() {
                return Ok(claimed.len());
            }
        }
    })
}

/// Lets a spawned consumer come to its wait.
async fn settle_down() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

pub async fn a_wait_ends_when_a_message_comes(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("a"), case.on("b")]).await;
    case.publish_all("b", &["ready before"]).await;
    in_time(case.bus.wait_ready(&case.request(&group, 1))).await.unwrap();
    let only_a = ClaimRequest { bindings: [case.on("a")].into(), ..case.request(&group, 1) };
    let waiting = consume(&case, only_a);
    settle_down().await;
    case.publish_all("b", &["not for it"]).await;
    settle_down().await;
    assert!(!waiting.is_finished());
    case.publish_all("a", &["for it"]).await;
    assert_eq!(in_time(waiting).await.unwrap().unwrap(), 1);
}

pub async fn a_wait_ends_when_a_message_becomes_due(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let waiting = consume(&case, case.request(&group, 1));
    settle_down().await;
    case.publish(Message { due: Due::After(TICK), ..case.message("t", "late") }).await;
    settle_down().await;
    assert!(!waiting.is_finished());
    case.advance(TICK * 2).await;
    assert_eq!(in_time(waiting).await.unwrap().unwrap(), 1);
}

pub async fn a_wait_ends_when_a_lease_runs_out(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let short = ClaimRequest { lease: TICK, ..case.request(&group, 1) };
    assert_eq!(case.bus.claim(&short).await.unwrap().len(), 1);
    let waiting = consume(&case, case.request(&group, 1));
    settle_down().await;
    assert!(!waiting.is_finished());
    case.advance(TICK * 2).await;
    assert_eq!(in_time(waiting).await.unwrap().unwrap(), 1);
}

pub async fn a_wait_ends_when_the_group_is_resumed(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.bus.pause(&group, true).await.unwrap();
    case.publish_all("t", &["1"]).await;
    let waiting = consume(&case, case.request(&group, 1));
    settle_down().await;
    assert!(!waiting.is_finished());
    case.bus.pause(&group, false).await.unwrap();
    assert_eq!(in_time(waiting).await.unwrap().unwrap(), 1);
}

pub async fn a_wait_ends_when_the_group_is_deleted(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let waiting = consume(&case, case.request(&group, 1));
    settle_down().await;
    case.bus.delete_group(&group).await.unwrap();
    let ended = in_time(waiting).await.unwrap();
    assert!(matches!(ended, Err(Error::NotFound { .. })), "{ended:?}");
}

pub async fn a_cancelled_wait_takes_no_wake_up_along(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let waiting = consume(&case, case.request(&group, 1));
    for _ in 0..3 {
        // A server may wait in rounds: only that it does not claim is certain.
        let request = case.request(&group, 1);
        still_waits(async {
            loop {
                case.bus.wait_ready(&request).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    case.publish_all("t", &["1"]).await;
    assert_eq!(in_time(waiting).await.unwrap().unwrap(), 1);
}
