//! The end of a backend.

use std::sync::Arc;

use eventbus::backend::{ListenRequest, Op, Outcome, Overflow, Transaction};
use eventbus::error::{Error, Result};

use super::{Case, Fixture, LONG, in_time};

fn refused<T>(result: Result<T>) {
    assert!(matches!(result, Err(Error::Closed { .. })), "{:?}", result.err());
}

pub async fn after_close_everything_is_refused(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2"]).await;
    let held = case.one(&group).await;
    case.bus.close().await.unwrap();
    case.bus.close().await.unwrap();
    let publish = Transaction { ops: vec![Op::Publish(case.message("t", "3"))] };
    let ack = Transaction { ops: vec![Op::Settle(held.lease.clone(), Outcome::Ack)] };
    let results = case.bus.commit(vec![publish, ack]).await;
    assert_eq!(results.len(), 2);
    results.into_iter().for_each(refused);
    refused(case.bus.claim(&case.request(&group, 1)).await);
    refused(case.bus.wait_ready(&case.request(&group, 1)).await);
    refused(case.bus.renew(&[held.lease], LONG).await.remove(0));
    refused(case.bus.read(&[case.key("k")]).await);
    refused(case.bus.inspect().await);
    refused(case.bus.delete_group(&group).await);
    let request = ListenRequest {
        bindings: vec![case.on("t")],
        buffer: 1,
        overflow: Overflow::DropOldest,
        since: None,
    };
    refused(case.bus.listen(request).await);
}

pub async fn close_ends_listeners_and_waits(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let request = ListenRequest {
        bindings: vec![case.on("t")],
        buffer: 10,
        overflow: Overflow::DropOldest,
        since: None,
    };
    let listener = case.bus.listen(request).await.unwrap();
    let next = tokio::spawn(async move { listener.next(1).await });
    let (bus, claim) = (Arc::clone(&case.bus), case.request(&group, 1));
    let wait = tokio::spawn(async move { bus.wait_ready(&claim).await });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    case.bus.close().await.unwrap();
    assert!(in_time(next).await.unwrap().unwrap().is_empty());
    refused(in_time(wait).await.unwrap());
}
