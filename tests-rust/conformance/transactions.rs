//! Transactions: all steps or none, neighbours untouched.

use eventbus::backend::{Delivery, Op, Outcome, Transaction};
use eventbus::error::Error;

use super::{Case, Fixture, TICK, put};

fn ack(delivery: &Delivery) -> Op {
    Op::Settle(delivery.lease.clone(), Outcome::Ack)
}

pub async fn settle_publish_and_write_together(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let from = case.group("from", &[case.on("in")]).await;
    let to = case.group("to", &[case.on("out")]).await;
    let key = case.key("r");
    case.publish_all("in", &["1"]).await;
    let delivery = case.one(&from).await;
    let ops = vec![ack(&delivery), Op::Publish(case.message("out", "2")), put(&key, "3", Some(0))];
    let done = case.commit(ops).await.unwrap();
    assert_eq!(
        (done.published.len(), done.published[0].queues, &done.versions[..]),
        (1, 1, &[1][..])
    );
    assert_eq!(case.drain(&to).await, ["2"]);
    assert_eq!(case.stats(&from).await.acked, 1);
    assert!(case.bus.read(&[key]).await.unwrap()[0].is_some());
}

pub async fn a_stale_token_undoes_all(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t"), case.on("u")]).await;
    case.publish_all("t", &["1", "2"]).await;
    let claimed = case.claim(&group, 2).await;
    case.ack(&claimed[0]).await;
    let key = case.key("r");
    let ops = vec![
        Op::Publish(case.message("u", "x")),
        put(&key, "x", None),
        ack(&claimed[1]),
        ack(&claimed[0]),
    ];
    let failed = case.commit(ops).await;
    assert!(matches!(failed, Err(Error::LeaseLost { .. })), "{failed:?}");
    let stats = case.stats(&group).await;
    assert_eq!((stats.acked, stats.in_flight, stats.ready), (1, 1, 0));
    assert!(case.bus.read(&[key]).await.unwrap()[0].is_none());
    case.ack(&claimed[1]).await;
}

pub async fn a_failed_precondition_undoes_all(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let delivery = case.one(&group).await;
    let (a, b) = (case.key("a"), case.key("b"));
    case.commit(vec![put(&a, "old", None)]).await.unwrap();
    let ops = vec![
        Op::Publish(case.message("t", "x")),
        ack(&delivery),
        put(&a, "new", Some(1)),
        put(&b, "new", Some(1)),
    ];
    let failed = case.commit(ops).await;
    assert!(matches!(failed, Err(Error::VersionConflict { .. })), "{failed:?}");
    assert_eq!(&case.bus.read(&[a]).await.unwrap()[0].clone().unwrap().value[..], b"old");
    assert_eq!(case.stats(&group).await.in_flight, 1);
    assert!(case.claim(&group, 9).await.is_empty());
    case.ack(&delivery).await;
}

pub async fn later_steps_see_earlier_ones(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let key = case.key("k");
    let delete = |if_version| Op::Delete { key: key.clone(), if_version };
    let ops = vec![put(&key, "1", Some(0)), put(&key, "2", Some(1)), delete(Some(2))];
    assert_eq!(case.commit(ops).await.unwrap().versions, [1, 2]);
    let ops = vec![put(&key, "3", Some(0)), delete(None), put(&key, "4", Some(0))];
    let done = case.commit(ops).await.unwrap();
    assert!(done.versions[0] > 2 && done.versions[1] > done.versions[0], "{done:?}");
    let refused = case.commit(vec![delete(None), put(&key, "5", Some(done.versions[1]))]).await;
    assert!(matches!(refused, Err(Error::VersionConflict { actual: 0, .. })), "{refused:?}");
    let found = case.bus.read(&[key]).await.unwrap().remove(0).unwrap();
    assert_eq!((&found.value[..], found.version), (&b"4"[..], done.versions[1]));
}

pub async fn neighbours_in_a_batch_are_independent(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["0"]).await;
    let delivery = case.one(&group).await;
    let key = case.key("k");
    let batch = vec![
        vec![Op::Publish(case.message("t", "1"))],
        vec![ack(&delivery)],
        vec![ack(&delivery), Op::Publish(case.message("t", "2"))],
        vec![put(&key, "v", Some(3)), Op::Publish(case.message("t", "3"))],
        vec![],
        vec![put(&key, "v", Some(0)), Op::Publish(case.message("t", "4"))],
    ];
    let batch = batch.into_iter().map(|ops| Transaction { ops }).collect();
    let results = case.bus.commit(batch).await;
    let ok: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(ok, [true, true, false, false, true, true], "{results:?}");
    assert_eq!(case.drain(&group).await, ["1", "4"]);
    assert!(case.bus.commit(vec![]).await.is_empty());
}

pub async fn one_delivery_is_settled_once(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let delivery = case.one(&group).await;
    let again = Op::Settle(delivery.lease.clone(), super::retry_after(TICK));
    let failed = case.commit(vec![ack(&delivery), again]).await;
    assert!(matches!(failed, Err(Error::LeaseLost { .. })), "{failed:?}");
    case.ack(&delivery).await;
}
