//! Failed deliveries that are tried again.

use std::time::Duration;

use super::{Case, Fixture, TICK, bodies, body, retry_after};

pub async fn a_retry_counts_an_attempt_and_waits(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    for attempts in 0..3 {
        let delivery = case.soon(&case.request(&group, 1)).await;
        assert_eq!((delivery.attempts, delivery.crashes), (attempts, 0));
        case.settle(&delivery, retry_after(TICK)).await.unwrap();
        assert!(case.claim(&group, 1).await.is_empty());
        case.advance(TICK * 2).await;
    }
    assert_eq!(case.stats(&group).await.retried, 3);
}

pub async fn a_retry_at_once_is_first_again(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2", "3"]).await;
    let first = case.one(&group).await;
    case.settle(&first, retry_after(Duration::ZERO)).await.unwrap();
    assert_eq!(body(&first), "1");
    assert_eq!(bodies(&case.claim(&group, 3).await), ["1", "2", "3"]);
}
