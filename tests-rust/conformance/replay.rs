//! Replay: what is kept comes first, then what is live, without a hole or a repeat.

use std::sync::Arc;
use std::time::Duration;

use eventbus::backend::{
    Broadcast, Due, Gap, GapCause, ListenRequest, Listener, Message, Op, Overflow, Since,
    Transaction,
};
use eventbus::topic::Binding;

use super::{Case, Fixture, LONG, TICK, in_time, new_id, still_waits};

async fn replay(
    case: &Case<'_>,
    binding: Binding,
    buffer: usize,
    since: Since,
) -> Box<dyn Listener> {
    let overflow = Overflow::DropOldest;
    let request = ListenRequest { bindings: vec![binding], buffer, overflow, since: Some(since) };
    case.bus.listen(request).await.unwrap()
}

/// Shows what arrived: a body, or `gap`.
fn show(broadcast: &Broadcast) -> String {
    match broadcast {
        Broadcast::Frame { body, .. } => String::from_utf8(body.to_vec()).unwrap(),
        Broadcast::Gap(Gap { cause: GapCause::Retention, count: None }) => "gap".into(),
        Broadcast::Gap(gap) => panic!("{gap:?}"),
    }
}

async fn until(listener: &dyn Listener, last: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|text| text != last) {
        let some = in_time(listener.next(100)).await.unwrap();
        assert!(!some.is_empty(), "it ended after {seen:?}");
        seen.extend(some.iter().map(show));
    }
    seen
}

fn texts(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn publish(case: &Case<'_>, topic: &str, range: std::ops::Range<u32>) {
    let texts = texts(range);
    case.publish_all(topic, &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

pub async fn what_is_kept_comes_first_then_what_is_live(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(LONG), None).await;
    assert!(case.bus.capabilities().replay);
    publish(&case, "t:a", 0..5).await;
    publish(&case, "other", 5..8).await;
    publish(&case, "t:b", 8..10).await;
    let topic = replay(&case, case.on("t:a"), 100, Since::Beginning).await;
    let pattern = replay(&case, case.like("t:[ab]"), 100, Since::Beginning).await;
    let live = case
        .bus
        .listen(ListenRequest {
            bindings: vec![case.on("t:a")],
            buffer: 10,
            overflow: Overflow::DropOldest,
            since: None,
        })
        .await
        .unwrap();
    publish(&case, "t:a", 10..12).await;
    let of_topic: Vec<_> = texts(0..5).into_iter().chain(texts(10..12)).collect();
    assert_eq!(until(&*topic, "11").await, of_topic);
    let of_pattern: Vec<_> =
        texts(0..5).into_iter().chain(texts(8..10)).chain(texts(10..12)).collect();
    assert_eq!(until(&*pattern, "11").await, of_pattern);
    assert_eq!(until(&*live, "11").await, ["10", "11"]);
    still_waits(topic.next(1)).await;
}

pub async fn since_an_event_a_time_or_a_position(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(LONG), None).await;
    let first = case.publish_all("t", &["0", "1", "2"]).await;
    case.advance(TICK).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["3"]).await;
    let accepted = case.one(&group).await.accepted_at;
    // The same event again: what lies between its two broadcasts must not be skipped.
    case.publish(Message { event: first[1], ..case.message("t", "4") }).await;
    let event = replay(&case, case.on("t"), 100, Since::Event(first[1])).await;
    assert_eq!(until(&*event, "4").await, ["2", "3", "4"]);
    let time = replay(&case, case.on("t"), 100, Since::Time(accepted)).await;
    assert_eq!(until(&*time, "4").await, ["3", "4"]);
    let early = replay(&case, case.on("t"), 100, Since::Time(accepted - 200_000)).await;
    assert_eq!(until(&*early, "4").await, ["3", "4"]);
    let ever = replay(&case, case.on("t"), 100, Since::Time(-5)).await;
    assert_eq!(until(&*ever, "4").await, texts(0..5));
    let future = replay(&case, case.on("t"), 100, Since::Time(i64::MAX)).await;
    let all = replay(&case, case.on("t"), 100, Since::Beginning).await;
    let mut positions = Vec::new();
    while positions.len() < 5 {
        for item in in_time(all.next(1)).await.unwrap() {
            let Broadcast::Frame { position, .. } = item else { panic!("{item:?}") };
            positions.push(position);
        }
    }
    let position = replay(&case, case.on("t"), 100, Since::After(positions[3])).await;
    case.publish_all("t", &["5"]).await;
    assert_eq!(until(&*position, "5").await, ["4", "5"]);
    assert_eq!(until(&*future, "5").await, ["5"]);
}

pub async fn a_cut_by_count_is_a_gap_first(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, None, Some(3)).await;
    let ids = case.publish_all("t", &["0", "1", "2", "3", "4"]).await;
    let event = replay(&case, case.on("t"), 100, Since::Event(ids[0])).await;
    assert_eq!(until(&*event, "4").await, ["gap", "2", "3", "4"]);
    let time = replay(&case, case.on("t"), 100, Since::Time(1)).await;
    assert_eq!(until(&*time, "4").await, ["gap", "2", "3", "4"]);
    let position = replay(&case, case.on("t"), 100, Since::After(0)).await;
    assert_eq!(until(&*position, "4").await, ["gap", "2", "3", "4"]);
    let beginning = replay(&case, case.on("t"), 100, Since::Beginning).await;
    assert_eq!(until(&*beginning, "4").await, ["2", "3", "4"]);
    let kept = replay(&case, case.on("t"), 100, Since::Event(ids[2])).await;
    assert_eq!(until(&*kept, "4").await, ["3", "4"]);
}

pub async fn a_cut_by_age_is_a_gap_first(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(TICK * 3), None).await;
    let ids = case.publish_all("t", &["0", "1"]).await;
    case.advance(TICK * 4).await;
    let empty = replay(&case, case.on("t"), 100, Since::Event(ids[1])).await;
    case.publish_all("t", &["2"]).await;
    assert_eq!(until(&*empty, "2").await, ["gap", "2"]);
    let event = replay(&case, case.on("t"), 100, Since::Event(ids[0])).await;
    assert_eq!(until(&*event, "2").await, ["gap", "2"]);
    let time = replay(&case, case.on("t"), 100, Since::Time(1)).await;
    assert_eq!(until(&*time, "2").await, ["gap", "2"]);
    let beginning = replay(&case, case.on("t"), 100, Since::Beginning).await;
    assert_eq!(until(&*beginning, "2").await, ["2"]);
}

pub async fn what_is_unknown_is_a_gap_first(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(LONG), None).await;
    case.publish_all("t", &["0", "1"]).await;
    let event = replay(&case, case.on("t"), 100, Since::Event(new_id())).await;
    assert_eq!(until(&*event, "1").await, ["gap", "0", "1"]);
    let ahead = replay(&case, case.on("t"), 100, Since::After(1_000_000)).await;
    assert_eq!(until(&*ahead, "1").await, ["gap", "0", "1"]);
}

pub async fn a_slow_listener_loses_nothing(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(LONG), None).await;
    publish(&case, "t", 0..300).await;
    let slow = replay(&case, case.on("t"), 7, Since::Beginning).await;
    publish(&case, "t", 300..600).await;
    let mut seen = Vec::new();
    while seen.len() < 600 {
        assert!(slow.buffer().len() <= 7);
        let some = in_time(slow.next(3)).await.unwrap();
        seen.extend(some.iter().map(show));
    }
    assert_eq!(seen, texts(0..600));
}

pub async fn one_that_is_overtaken_is_told(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, None, Some(5)).await;
    publish(&case, "t", 0..2).await;
    let slow = replay(&case, case.on("t"), 2, Since::Beginning).await;
    assert_eq!(show(&in_time(slow.next(1)).await.unwrap()[0]), "0");
    publish(&case, "t", 2..50).await;
    let seen = until(&*slow, "49").await;
    let gap = seen.iter().position(|text| text == "gap").unwrap();
    let known: Vec<u32> = seen[..gap].iter().map(|text| text.parse().unwrap()).collect();
    assert!(known.iter().copied().eq(1..=u32::try_from(known.len()).unwrap()), "{seen:?}");
    assert_eq!(seen[seen.len() - 5..], texts(45..50));
    assert!(!seen[gap + 1..].contains(&known.last().unwrap().to_string()), "{seen:?}");
}

pub async fn what_was_refused_or_not_heard_is_not_kept(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(LONG), None).await;
    case.limited("g", &[case.on("t")], Some(2)).await;
    case.publish_all("t", &["0"]).await;
    case.publish(Message { broadcast: false, ..case.message("t", "silent") }).await;
    let refused = case.commit(vec![Op::Publish(case.message("t", "full"))]).await;
    assert!(refused.is_err());
    let late = Message { due: Due::After(LONG), ..case.message("u", "late") };
    case.publish(late).await;
    for _ in 0..2 {
        let once = Message { dedup_id: Some("d".into()), ..case.message("u", "once") };
        case.publish(once).await;
    }
    let batch = ["x", "y"].map(|body| Op::Publish(case.message("u", body)));
    case.commit(batch.to_vec()).await.unwrap();
    let all = replay(&case, case.like("*"), 100, Since::Beginning).await;
    assert_eq!(until(&*all, "y").await, ["0", "once", "x", "y"]);
}

pub async fn many_join_while_many_publish(fixture: &dyn Fixture) {
    const PUBLISHERS: u32 = 4;
    const EACH: u32 = 150;
    let case = Case::keeping(fixture, Some(LONG), None).await;
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let bus = Arc::clone(&case.bus);
            let message = case.message(&format!("t:{publisher}"), "");
            tokio::spawn(async move {
                for n in 0..EACH {
                    let body = format!("{publisher}:{n}").into();
                    let message =
                        Message { id: new_id(), event: new_id(), body, ..message.clone() };
                    let ops = vec![Op::Publish(message)];
                    for result in bus.commit(vec![Transaction { ops }]).await {
                        result.unwrap();
                    }
                    if n % 16 == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            })
        })
        .collect();
    let mut joined = Vec::new();
    for _ in 0..12 {
        joined.push(replay(&case, case.like("t:*"), 64, Since::Beginning).await);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let mut orders: Vec<Vec<String>> = Vec::new();
    for listener in &joined {
        let mut seen = Vec::new();
        while seen.len() < (PUBLISHERS * EACH) as usize {
            seen.extend(in_time(listener.next(50)).await.unwrap().iter().map(show));
        }
        orders.push(seen);
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for publisher in 0..PUBLISHERS {
        let own = format!("{publisher}:");
        let of: Vec<&str> = orders[0].iter().filter_map(|text| text.strip_prefix(&own)).collect();
        assert_eq!(of, texts(0..EACH));
    }
    assert!(orders.iter().all(|order| *order == orders[0]), "the order is not the same for all");
    for listener in &joined {
        still_waits(listener.next(1)).await;
    }
}

pub async fn a_dropped_or_closed_listener_ends(fixture: &dyn Fixture) {
    let case = Case::keeping(fixture, Some(LONG), None).await;
    publish(&case, "t", 0..100).await;
    drop(replay(&case, case.on("t"), 5, Since::Beginning).await);
    let starting = replay(&case, case.on("t"), 5, Since::Beginning);
    still_waits(async {
        starting.await;
        std::future::pending::<()>().await;
    })
    .await;
    let listener = replay(&case, case.on("t"), 500, Since::Beginning).await;
    assert_eq!(until(&*listener, "99").await.len(), 100);
    case.bus.close().await.unwrap();
    assert!(in_time(listener.next(1)).await.unwrap().is_empty());
}
