//! Messages that are due later.

use eventbus::backend::{Broadcast, Due, ListenRequest, Message, Overflow};

use super::{Case, Fixture, LONG, TICK, body, in_time};

pub async fn a_delayed_message_is_claimed_when_due(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(Message { due: Due::After(TICK * 3), ..case.message("t", "second") }).await;
    case.publish(Message { due: Due::After(TICK), ..case.message("t", "first") }).await;
    case.publish(Message { due: Due::After(LONG), ..case.message("t", "never") }).await;
    assert!(case.claim(&group, 9).await.is_empty());
    let stats = case.stats(&group).await;
    assert_eq!((stats.delayed, stats.ready), (3, 0));
    case.advance(TICK * 2).await;
    assert_eq!(body(&case.soon(&case.request(&group, 1)).await), "first");
    case.advance(TICK * 2).await;
    assert_eq!(body(&case.soon(&case.request(&group, 1)).await), "second");
    assert!(case.claim(&group, 9).await.is_empty());
}

pub async fn a_time_in_the_past_is_due_at_once(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish(Message { due: Due::At(1), ..case.message("t", "1") }).await;
    case.publish(Message { due: Due::After(std::time::Duration::ZERO), ..case.message("t", "2") })
        .await;
    assert_eq!(case.drain(&group).await, ["1", "2"]);
}

pub async fn a_delayed_message_is_not_broadcast(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let request = ListenRequest {
        bindings: vec![case.on("t")],
        buffer: 10,
        overflow: Overflow::DropOldest,
        since: None,
    };
    let listener = case.bus.listen(request).await.unwrap();
    for due in [Due::After(TICK), Due::At(1)] {
        case.publish(Message { due, ..case.message("t", "not heard") }).await;
    }
    case.publish(case.message("t", "heard")).await;
    match in_time(listener.next(1)).await.unwrap().remove(0) {
        Broadcast::Frame { body, .. } => assert_eq!(&body[..], b"heard"),
        gap @ Broadcast::Gap(_) => panic!("{gap:?}"),
    }
}
