//! What a publish stores.

use bytes::Bytes;
use eventbus::backend::{Accepted, Message, Op, Transaction};

use super::{Case, Fixture};

pub async fn a_topic_without_group_stores_nothing(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("other")]).await;
    let accepted = case.publish(case.message("t", "x")).await;
    assert_eq!(accepted, Accepted { duplicate: false, queues: 0 });
    assert!(case.claim(&group, 10).await.is_empty());
    assert_eq!(case.stats(&group).await.accepted, 0);
}

pub async fn a_batch_is_stored_in_order(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let one = |n: usize| Op::Publish(case.message("t", &n.to_string()));
    let batch = (0..10)
        .map(|tx| Transaction { ops: (0..10).map(|n| one(tx * 10 + n)).collect() })
        .collect();
    for result in case.bus.commit(batch).await {
        assert_eq!(result.unwrap().published.len(), 10);
    }
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(case.drain(&group).await, expected);
}

pub async fn bodies_arrive_unchanged(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let odd: Vec<Bytes> =
        vec![Bytes::new(), (0..=255u8).collect(), vec![0; 300_000].into(), "ä€𝄞\0".into()];
    for body in &odd {
        let message = Message { body: body.clone(), ..case.keyed("t", "", "k€y") };
        case.publish(message).await;
    }
    for body in &odd {
        let delivery = case.one(&group).await;
        assert!(delivery.body == body, "a body of {} bytes was changed", body.len());
        assert_eq!(delivery.key.as_deref(), Some("k€y"));
        assert_eq!(delivery.topic, case.topic("t"));
        case.ack(&delivery).await;
    }
}
