//! What SQL clients do beside the backend: publish in their own transactions, settle, notify.

use std::collections::HashSet;
use std::time::Duration;

use eventbus::backend::{Broadcast, ConnectionState, ListenRequest, Listener, Message, Overflow};
use eventbus::bus::{fresh_defaults, open_postgres};
use eventbus::codec::{self, Limits};
use eventbus::error::Error;
use eventbus::event::EventId;
use eventbus::topic::{Binding, Pattern};
use proptest::prelude::*;

use super::conformance::{Case, Fixture, in_time, still_waits};
use super::{Postgres, server};

pub(crate) async fn listen(case: &Case<'_>) -> Box<dyn Listener> {
    let everything = Binding::Pattern(Pattern::new("*"));
    let request = ListenRequest {
        bindings: vec![everything],
        buffer: 100_000,
        overflow: Overflow::DropOldest,
        since: None,
    };
    case.bus.listen(request).await.unwrap()
}

/// Receives one frame.
async fn frame(listener: &dyn Listener) -> (String, bytes::Bytes) {
    match in_time(listener.next(1)).await.unwrap().pop() {
        Some(Broadcast::Frame { topic, body, .. }) => (topic.to_string(), body),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_publish_from_sql_is_queued_and_heard_with_its_transaction() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.like("orders:*")]).await;
    let listener = listen(&case).await;
    let mut client = fixture.plain().await;
    let topic = case.topic("orders:created").to_string();
    let publish = "select publish($1, '{\"id\": 7}', source => 'psql')::text";

    let undone = client.transaction().await.unwrap();
    undone.query(publish, &[&topic]).await.unwrap();
    undone.rollback().await.unwrap();

    let kept = client.transaction().await.unwrap();
    let id: String = kept.query_one(publish, &[&topic]).await.unwrap().get(0);
    assert!(case.claim(&group, 9).await.is_empty());
    still_waits(listener.next(1)).await;
    kept.commit().await.unwrap();

    let delivery = case.one(&group).await;
    let (heard, body) = frame(&*listener).await;
    assert_eq!((&heard, &body), (&topic, &delivery.body));
    let event = codec::decode(&body, &Limits::default(), fresh_defaults).unwrap();
    let EventId::Uuid(event_id) = event.event_id else { panic!("{:?}", event.event_id) };
    assert_eq!(uuid::Uuid::from_bytes(event_id).to_string(), id);
    assert_eq!(event_id, delivery.lease.message);
    assert_eq!(&*event.topic, &*topic);
    case.ack(&delivery).await;
    assert_eq!(case.stats(&group).await.accepted, 1);
}

#[tokio::test]
async fn every_option_of_a_publish_from_sql_means_what_it_says() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let group = case.limited("g", &[case.on("t")], Some(3)).await;
    let client = fixture.plain().await;
    let topic = case.topic("t").to_string();
    let publish = |options: &str| {
        let text = format!("select publish($1, 'null'{options})");
        let (client, topic) = (&client, &topic);
        async move { client.query(&text, &[topic]).await }
    };
    publish(", dedup_id => 'a', priority => 3").await.unwrap();
    publish(", dedup_id => 'a'").await.unwrap();
    publish(", key => 'k', delay => '1 hour'").await.unwrap();
    publish(", unique_key => 'u', key => 'k'").await.unwrap();
    publish(", unique_key => 'u'").await.unwrap();
    let stats = case.stats(&group).await;
    assert_eq!((stats.accepted, stats.ready, stats.delayed), (3, 2, 1));
    let full = publish("").await.unwrap_err();
    let full = full.as_db_error().unwrap();
    assert_eq!(full.code().code(), "EB004");
    assert!(full.message().contains(&*group), "{}", full.message());
    let claimed = case.claim(&group, 9).await;
    assert_eq!(claimed.iter().map(|delivery| delivery.priority).collect::<Vec<_>>(), [3]);
    assert!(client.query("select publish(E'a\\nb', '{}')", &[]).await.is_err());
}

#[tokio::test]
async fn a_large_broadcast_is_heard_in_its_place() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let listener = listen(&case).await;
    let sizes = [10, 5_000, 5_700, 5_900, 9_000, 1_000_000, 3];
    for size in sizes {
        let message = Message { body: vec![7; size].into(), ..case.message("t", "") };
        case.publish(message).await;
    }
    let client = fixture.plain().await;
    let large = format!("select publish('sql', to_jsonb(repeat('x', {})))", 20_000);
    client.batch_execute(&large).await.unwrap();
    for size in sizes {
        assert_eq!(frame(&*listener).await.1.len(), size);
    }
    assert!(frame(&*listener).await.1.len() > 20_000);
}

#[tokio::test]
async fn a_stale_settle_from_sql_is_refused() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1"]).await;
    let delivery = case.one(&group).await;
    let client = fixture.plain().await;
    let settle = "select settle(g.id, $1, $2, $3, 0::smallint, null, null, null) from groups g";
    let binding = i32::try_from(delivery.lease.binding).unwrap();
    let id = uuid::Uuid::from_bytes(delivery.lease.message);
    let token = i64::try_from(delivery.lease.token).unwrap();
    for (token, done) in [(token + 1, false), (token, true), (token, false)] {
        let row = client.query_one(settle, &[&binding, &id, &token]).await.unwrap();
        assert_eq!(row.get::<_, bool>(0), done);
    }
    assert_eq!(case.stats(&group).await.acked, 1);
}

#[tokio::test]
async fn a_parcel_that_is_sent_twice_takes_effect_once() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let client = fixture.plain().await;
    let text = "select results from commit(p_producer => $1, p_parcel => $2, o_tx => '{1}', \
                o_kind => '{2}', o_name => '{k}', o_body => '{abc}')";
    let producer = uuid::Uuid::new_v4();
    let mut answers = Vec::new();
    for parcel in [1i64, 1, 2, 2, 2] {
        let row = client.query_one(text, &[&producer, &parcel]).await.unwrap();
        answers.push(row.get::<_, Vec<i64>>(0));
    }
    assert_eq!(answers, [[0, 1, 1], [0, 1, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]);
    let late = client.query_one(text, &[&producer, &1i64]).await.unwrap_err();
    assert_eq!(late.code().unwrap().code(), "EB006");
    let found = case.bus.read(&["k".into()]).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap().version, 2);
}

#[tokio::test]
async fn hostile_notifications_are_counted_and_skipped() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let listener = listen(&case).await;
    let client = fixture.plain().await;
    let channel = format!("eventbus:{}", fixture.config.schema);
    let long = format!("b{}", "f".repeat(7_000));
    let bad =
        ["", "b", "b1.2.3:AAAA", "b.0.0:", "w", "w,", "w99999999999", "\u{1F4A9}", "x", &long];
    for text in bad {
        client.query("select pg_notify($1, $2)", &[&channel, &text]).await.unwrap();
    }
    // These are well formed and mean nothing.
    for text in ["w0,-7", "r0", "t", "r\u{1F4A9}"] {
        client.query("select pg_notify($1, $2)", &[&channel, &text]).await.unwrap();
    }
    case.publish_all("t", &["still here"]).await;
    assert_eq!(&frame(&*listener).await.1[..], b"still here");
    let health = case.bus.health();
    assert_eq!((health.malformed, health.state), (bad.len() as u64, ConnectionState::Live));
}

#[tokio::test]
async fn a_role_without_ddl_rights_checks_the_version_and_works() {
    let mut fixture = Postgres::shared();
    let early = open_postgres(eventbus::config::PostgresConfig {
        migrate: false,
        ..fixture.config.clone()
    });
    let refused = early.unwrap().connect().await;
    let Err(Error::Config { problems }) = refused else { panic!("{refused:?}") };
    assert!(problems[0].contains("migrate=true"), "{problems:?}");

    fixture.backend().await.close().await.unwrap();
    let (schema, client) = (fixture.config.schema.clone(), fixture.plain().await);
    let grants = format!(
        "create role {schema}_run login; grant usage on schema {schema} to {schema}_run; \
         grant select, insert, update, delete on all tables in schema {schema} to {schema}_run; \
         grant usage on all sequences in schema {schema} to {schema}_run"
    );
    client.batch_execute(&grants).await.unwrap();
    fixture.config.migrate = false;
    fixture.config.net.username = Some(format!("{schema}_run"));
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2"]).await;
    let delivery = case.one(&group).await;
    case.reject(&delivery, "no").await;
    assert_eq!(case.bus.retry_dead(&group, &[delivery.lease.message]).await.unwrap(), 1);
    assert_eq!(case.drain(&group).await, ["2", "1"]);
    case.stats(&group).await;
}

#[tokio::test]
async fn of_many_clients_that_start_one_creates_the_schema() {
    let fixture = Postgres::shared();
    let started = (0..6).map(|_| {
        let backend = open_postgres(fixture.config.clone()).unwrap();
        tokio::spawn(async move { backend.connect().await })
    });
    for started in started.collect::<Vec<_>>() {
        started.await.unwrap().unwrap();
    }
    let client = fixture.plain().await;
    let row = client.query_one("select count(*) from migrations", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_declaration_waits_for_publishers_of_the_old_version_and_holds_up_nobody() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let mut client = fixture.plain().await;
    let open = client.transaction().await.unwrap();
    open.batch_execute("select publish('elsewhere', '{}')").await.unwrap();
    let bus = case.bus.clone();
    let spec = eventbus::backend::GroupSpec {
        name: case.topic("g"),
        bindings: vec![case.on("t")],
        max_length: None,
    };
    let declared = tokio::spawn(async move { bus.declare_group(spec).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!declared.is_finished());
    // Others go on meanwhile, by the new version.
    assert_eq!(case.publish(case.message("t", "1")).await.queues, 1);
    // Who still names the old one is refused at once.
    let late = fixture.plain().await;
    let stale = late.batch_execute("select commit(p_registry => 1)");
    let stale = in_time(stale).await.unwrap_err();
    assert_eq!(stale.code().unwrap().code(), "EB001");
    open.commit().await.unwrap();
    in_time(declared).await.unwrap().unwrap();
    assert_eq!(case.drain(&case.topic("g")).await, ["1"]);
}

#[tokio::test]
async fn an_old_snapshot_cannot_publish_past_a_declaration() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let mut client = fixture.plain().await;
    let level = tokio_postgres::IsolationLevel::RepeatableRead;
    let publish = format!("select publish('{}', '1')", case.topic("t"));
    let old = client.build_transaction().isolation_level(level).start().await.unwrap();
    old.batch_execute("select 1 from registry").await.unwrap();
    let group = case.group("g", &[case.on("t")]).await;
    let refused = in_time(old.batch_execute(&publish)).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "40001");
    old.rollback().await.unwrap();
    let new = client.build_transaction().isolation_level(level).start().await.unwrap();
    new.batch_execute(&publish).await.unwrap();
    new.commit().await.unwrap();
    assert_eq!(case.claim(&group, 9).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn publishers_in_parallel_never_deadlock_nor_overfill() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let other = fixture.backend().await;
    let (a, b) = (case.on("a"), case.on("b"));
    let one = case.limited("one", &[a.clone(), b.clone()], Some(60)).await;
    let two = case.limited("two", &[b, a], Some(60)).await;
    let mut tasks = Vec::new();
    for n in 0..8 {
        let bus = if n % 2 == 0 { case.bus.clone() } else { other.clone() };
        let topics = if n % 3 == 0 { ["a", "b"] } else { ["b", "a"] };
        let batches: Vec<_> = (0..20)
            .map(|n| {
                let key = format!("k{}", n % 3);
                let publish = |topic| eventbus::backend::Op::Publish(case.keyed(topic, "m", &key));
                eventbus::backend::Transaction { ops: topics.map(publish).to_vec() }
            })
            .collect();
        tasks.push(tokio::spawn(async move {
            let mut accepted = 0;
            for transaction in batches {
                match bus.commit(vec![transaction]).await.remove(0) {
                    Ok(_) => accepted += 2,
                    Err(Error::QueueFull { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            accepted
        }));
    }
    let mut accepted = 0;
    for task in tasks {
        accepted += in_time(task).await.unwrap();
    }
    assert_eq!(accepted, 60);
    for group in [one, two] {
        assert_eq!(case.stats(&group).await.accepted, 60);
    }
}

fn topics_and_patterns() -> impl Strategy<Value = Vec<(String, String)>> {
    let odd = "[ab:.*?\\[\\]!^\\\\$(){}|+é€𝄞\n-]{0,8}";
    let near = "[ab:*?]{0,6}";
    let sets = "(a|b|\\*|\\?|\\[!?[a-d\\]^-]{0,4}\\]|:){0,5}";
    let pattern = prop_oneof![odd, near, sets];
    let topic = prop_oneof!["[ab:]{0,6}", "[abcd\\[\\]!^:\n$.é€𝄞-]{0,6}"];
    prop::collection::vec((pattern, topic), 100)
}

#[test]
fn the_server_matches_patterns_as_the_core_does() {
    let address = server::shared();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(Postgres::on(address).plain());
    let config = ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() };
    proptest!(config, |(pairs in topics_and_patterns())| {
        let pairs: HashSet<(String, String)> = pairs.into_iter().collect();
        let pairs: Vec<_> = pairs.into_iter().collect();
        let patterns: Vec<_> = pairs.iter().map(|(text, _)| Pattern::new(text)).collect();
        let regexes: Vec<_> = patterns.iter().map(Pattern::to_regex).collect();
        let topics: Vec<_> = pairs.iter().map(|(_, topic)| topic.as_str()).collect();
        let text = "select array_agg(t ~ r order by n) \
                    from unnest($1::text[], $2::text[]) with ordinality as u (t, r, n)";
        let asked = runtime.block_on(client.query_one(text, &[&topics, &regexes]));
        let found: Vec<bool> = asked.unwrap().get(0);
        for (index, found) in found.into_iter().enumerate() {
            let expected = patterns[index].matches(topics[index]);
            prop_assert_eq!(found, expected, "{:?} {}", pairs[index], regexes[index]);
        }
    });
}
