//! Replay and transactions that commit late: nothing is skipped, nobody waits, nothing is left.

use std::collections::HashSet;
use std::time::Duration;

use eventbus::backend::{Broadcast, ListenRequest, Listener, Overflow, Since};
use eventbus::bus::fresh_defaults;
use eventbus::codec::{self, Limits};
use eventbus::event::EventId;

use super::Postgres;
use super::conformance::{Case, Fixture, LONG, in_time, still_waits};

async fn replay(case: &Case<'_>, since: Since) -> Box<dyn Listener> {
    let bindings = vec![case.like("*")];
    let overflow = Overflow::DropOldest;
    let request = ListenRequest { bindings, buffer: 100, overflow, since: Some(since) };
    case.bus.listen(request).await.unwrap()
}

/// Receives so many frames: position, topic and the event's id, if its body is an event.
async fn frames(listener: &dyn Listener, count: usize) -> Vec<(u64, String, Option<[u8; 16]>)> {
    let mut seen = Vec::new();
    while seen.len() < count {
        for item in in_time(listener.next(count - seen.len())).await.unwrap() {
            let Broadcast::Frame { position, topic, body } = item else { panic!("{item:?}") };
            let event = codec::decode(&body, &Limits::default(), fresh_defaults).ok();
            let id = event.and_then(|event| match event.event_id {
                EventId::Uuid(id) => Some(id),
                EventId::Other(_) => None,
            });
            seen.push((position, topic.rsplit(':').next().unwrap().to_owned(), id));
        }
    }
    seen
}

fn topics(frames: &[(u64, String, Option<[u8; 16]>)]) -> Vec<&str> {
    frames.iter().map(|(_, topic, _)| topic.as_str()).collect()
}

const PUBLISH: &str = "select publish($1, '1')::text";

#[tokio::test]
async fn a_late_commit_is_neither_skipped_nor_waited_for() {
    let fixture = Postgres::shared();
    let case = Case::keeping(&fixture, Some(LONG), None).await;
    let reader = replay(&case, Since::Beginning).await;
    let mut client = fixture.plain().await;
    let open = client.transaction().await.unwrap();
    open.query(PUBLISH, &[&&*case.topic("late")]).await.unwrap();
    case.publish_all("early", &["1", "2"]).await;
    // It began before them, and does not hold them up.
    assert_eq!(topics(&frames(&*reader, 2).await), ["early", "early"]);
    still_waits(reader.next(1)).await;
    let other = replay(&case, Since::Beginning).await;
    assert_eq!(topics(&frames(&*other, 2).await), ["early", "early"]);
    open.commit().await.unwrap();
    case.publish_all("after", &["3"]).await;
    let first = frames(&*reader, 2).await;
    let second = frames(&*other, 2).await;
    assert_eq!(first, second);
    let all = frames(&*replay(&case, Since::Beginning).await, 4).await;
    assert_eq!(all.iter().map(|(position, ..)| *position).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(topics(&all)[..2], ["early", "early"]);
    assert_eq!(all[2..], first);
    // What SQL published is found by the id of its event.
    let late = first.iter().find(|(_, topic, _)| topic == "late").unwrap();
    let behind = replay(&case, Since::Event(late.2.unwrap())).await;
    case.publish_all("last", &["4"]).await;
    let rest = frames(&*behind, 5 - usize::try_from(late.0).unwrap()).await;
    assert_eq!(rest.last().unwrap().1, "last");
}

#[tokio::test]
async fn what_is_rolled_back_leaves_no_gap() {
    let fixture = Postgres::shared();
    let case = Case::keeping(&fixture, Some(LONG), None).await;
    let reader = replay(&case, Since::Beginning).await;
    let mut client = fixture.plain().await;
    for n in 0..5 {
        let undone = client.transaction().await.unwrap();
        undone.query(PUBLISH, &[&&*case.topic("undone")]).await.unwrap();
        undone.rollback().await.unwrap();
        case.publish_all("kept", &[&n.to_string()]).await;
    }
    // `frames` refuses a gap.
    assert_eq!(topics(&frames(&*reader, 5).await), ["kept"; 5]);
    assert_eq!(topics(&frames(&*replay(&case, Since::Beginning).await, 5).await), ["kept"; 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_that_dawdle_before_they_commit_leave_no_hole() {
    const WRITERS: usize = 16;
    const EACH: usize = 25;
    let fixture = Postgres::shared();
    let case = Case::keeping(&fixture, Some(LONG), None).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let topic = case.topic(&writer.to_string());
            let config = fixture.config.clone();
            tokio::spawn(async move {
                let mut client = Postgres { config }.plain().await;
                for n in 0..EACH {
                    let open = client.transaction().await.unwrap();
                    open.query(PUBLISH, &[&&*topic]).await.unwrap();
                    let pause = (writer * 7 + n * 13) % 23;
                    tokio::time::sleep(Duration::from_millis(pause as u64)).await;
                    open.commit().await.unwrap();
                }
            })
        })
        .collect();
    let mut readers = Vec::new();
    for _ in 0..6 {
        readers.push(replay(&case, Since::Beginning).await);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    let mut all = Vec::new();
    for reader in &readers {
        let seen = frames(&**reader, WRITERS * EACH).await;
        let ids: HashSet<_> = seen.iter().map(|(.., id)| id.unwrap()).collect();
        assert_eq!(ids.len(), WRITERS * EACH);
        all.push(seen);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(all.iter().all(|seen| *seen == all[0]), "the order is not the same for all");
}

#[tokio::test]
async fn what_is_kept_no_longer_is_removed_also_when_nobody_reads() {
    let mut fixture = Postgres::shared();
    fixture.config.sweep = Duration::from_millis(100);
    let case = Case::keeping(&fixture, None, Some(10)).await;
    let bodies: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    case.publish_all("t", &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let client = fixture.plain().await;
    let count = "select (select count(*) from kept) + (select count(*) from kept_fresh)";
    let counted = async {
        while client.query_one(count, &[]).await.unwrap().get::<_, i64>(0) != 10 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(counted).await;
}

#[tokio::test]
async fn without_retention_nothing_is_kept_and_nothing_is_written() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    case.group("g", &[case.on("grouped")]).await;
    case.publish_all("grouped", &["1"]).await;
    case.publish_all("t", &["1", "2"]).await;
    let client = fixture.plain().await;
    client.query(PUBLISH, &[&&*case.topic("t")]).await.unwrap();
    let count = "select count(*) from kept";
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 0);
    // Whoever keeps makes every publisher keep, also those that know nothing of it.
    let keeping = fixture.keeping(Some(LONG), None).await;
    case.publish_all("t", &["3"]).await;
    client.query(PUBLISH, &[&&*case.topic("t")]).await.unwrap();
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 2);
    keeping.close().await.unwrap();
}
