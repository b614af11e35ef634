//! Broadcasts: order, holes and ends.

use eventbus::backend::{
    Broadcast, Gap, GapCause, ListenRequest, Listener, Message, Overflow, Since,
};
use eventbus::error::Error;
use eventbus::topic::Binding;

use super::{Case, Fixture, in_time, still_waits};

async fn listen(
    case: &Case<'_>,
    bindings: Vec<Binding>,
    buffer: usize,
    overflow: Overflow,
) -> Box<dyn Listener> {
    let request = ListenRequest { bindings, buffer, overflow, since: None };
    case.bus.listen(request).await.unwrap()
}

/// Shows what arrived: a body, or `-n` for a gap of n.
fn show(broadcast: &Broadcast) -> String {
    match broadcast {
        Broadcast::Frame { body, .. } => String::from_utf8(body.to_vec()).unwrap(),
        Broadcast::Gap(Gap { cause: GapCause::Overflow, count: Some(count) }) => {
            format!("-{count}")
        }
        Broadcast::Gap(gap) => panic!("{gap:?}"),
    }
}

/// Receives until `last` came, or the end.
async fn receive_until(listener: &dyn Listener, last: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|text| text != last) {
        let batch = in_time(listener.next(2)).await.unwrap();
        if batch.is_empty() {
            break;
        }
        assert!(batch.len() <= 2);
        seen.extend(batch.iter().map(show));
    }
    seen
}

pub async fn listeners_receive_in_order_what_matches_once(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let all = vec![case.on("a"), case.like("*"), case.like("a*")];
    let wide = listen(&case, all, 100, Overflow::DropOldest).await;
    let narrow = listen(&case, vec![case.on("b")], 100, Overflow::DropOldest).await;
    case.publish_all("a", &["1", "2"]).await;
    case.publish_all("b", &["3"]).await;
    case.publish_all("a", &["4"]).await;
    case.publish_all("b", &["5"]).await;
    assert_eq!(receive_until(&*wide, "5").await, ["1", "2", "3", "4", "5"]);
    assert_eq!(receive_until(&*narrow, "5").await, ["3", "5"]);
    case.publish_all("a", &["6", "7"]).await;
    let mut last = 0;
    for _ in 0..2 {
        let Broadcast::Frame { position, topic, .. } =
            in_time(wide.next(1)).await.unwrap().remove(0)
        else {
            panic!("a gap")
        };
        assert!(position > last && topic == case.topic("a"));
        last = position;
    }
}

pub async fn what_is_published_before_listening_is_not_received(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    case.publish_all("t", &["before"]).await;
    let listener = listen(&case, vec![case.on("t")], 10, Overflow::DropOldest).await;
    case.publish_all("t", &["after"]).await;
    assert_eq!(receive_until(&*listener, "after").await, ["after"]);
    still_waits(listener.next(1)).await;
}

pub async fn a_full_buffer_drops_the_oldest_and_says_so(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let listener = listen(&case, vec![case.on("t")], 3, Overflow::DropOldest).await;
    let other = listen(&case, vec![case.on("t")], 100, Overflow::DropOldest).await;
    let texts: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    case.publish_all("t", &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    // The other one has them all, so this one was offered them all.
    receive_until(&*other, "9").await;
    assert_eq!(receive_until(&*listener, "9").await, ["-7", "7", "8", "9"]);
    case.publish_all("t", &["10"]).await;
    assert_eq!(receive_until(&*listener, "10").await, ["10"]);
}

pub async fn a_full_buffer_drops_the_newest_and_says_where(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let listener = listen(&case, vec![case.on("t")], 2, Overflow::DropNewest).await;
    let other = listen(&case, vec![case.on("t")], 100, Overflow::DropOldest).await;
    case.publish_all("t", &["1", "2", "3", "4"]).await;
    receive_until(&*other, "4").await;
    assert_eq!(show(&in_time(listener.next(1)).await.unwrap()[0]), "1");
    case.publish_all("t", &["5", "6"]).await;
    receive_until(&*other, "6").await;
    assert_eq!(receive_until(&*listener, "-1").await, ["2", "-2", "5", "-1"]);
    case.publish_all("t", &["7"]).await;
    assert_eq!(receive_until(&*listener, "7").await, ["7"]);
}

pub async fn a_full_buffer_can_end_the_listener(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let listener = listen(&case, vec![case.on("t")], 2, Overflow::Close).await;
    let other = listen(&case, vec![case.on("t")], 100, Overflow::DropOldest).await;
    case.publish_all("t", &["1", "2", "3", "4"]).await;
    receive_until(&*other, "4").await;
    let mut seen = Vec::new();
    loop {
        let batch = in_time(listener.next(10)).await.unwrap();
        if batch.is_empty() {
            break;
        }
        seen.extend(batch);
    }
    let Some(Broadcast::Gap(gap)) = seen.pop() else { panic!("no gap: {seen:?}") };
    assert_eq!(gap.cause, GapCause::Overflow);
    assert_eq!(seen.iter().map(show).collect::<Vec<_>>(), ["1", "2"]);
    assert!(in_time(listener.next(10)).await.unwrap().is_empty());
}

pub async fn a_message_not_for_broadcast_is_not_heard(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let listener = listen(&case, vec![case.on("t")], 10, Overflow::DropOldest).await;
    case.publish(Message { broadcast: false, ..case.message("t", "1") }).await;
    case.publish_all("t", &["2"]).await;
    assert_eq!(receive_until(&*listener, "2").await, ["2"]);
    assert_eq!(case.drain(&group).await, ["1", "2"]);
}

pub async fn a_cancelled_next_loses_nothing(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    let listener = listen(&case, vec![case.on("t")], 10, Overflow::DropOldest).await;
    still_waits(listener.next(1)).await;
    {
        let next = listener.next(1);
        case.publish_all("t", &["1", "2"]).await;
        drop(next);
    }
    assert_eq!(receive_until(&*listener, "2").await, ["1", "2"]);
}

pub async fn replay_is_refused_where_it_is_not_supported(fixture: &dyn Fixture) {
    let case = Case::new(fixture).await;
    if case.bus.capabilities().replay {
        return;
    }
    let request = ListenRequest {
        bindings: vec![case.on("t")],
        buffer: 1,
        overflow: Overflow::DropOldest,
        since: Some(Since::After(0)),
    };
    let refused = case.bus.listen(request.clone()).await.err();
    assert!(matches!(refused, Some(Error::Unsupported { .. })), "{refused:?}");
    let request = ListenRequest { buffer: 0, since: None, ..request };
    let refused = case.bus.listen(request).await.err();
    assert!(matches!(refused, Some(Error::InvalidArgument { .. })), "{refused:?}");
}
