//! What happens to a server, and what becomes of those who use it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eventbus::backend::{
    Backend, Broadcast, ClaimRequest, ConnectionState, GapCause, Listener, Op, Outcome, Transaction,
};
use eventbus::error::Error;

use super::conformance::{Case, in_time, new_id};
use super::proxy::{CUT, NO_NOTIFICATIONS, PASS, Proxy};
use super::server::Server;
use super::sql::listen;
use super::{Postgres, server};

/// Receives until a frame with this body came; returns the bodies before it and whether there was a
/// gap by a reconnect.
async fn until(listener: &dyn Listener, last: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let (mut seen, mut gap) = (Vec::new(), false);
    loop {
        for broadcast in in_time(listener.next(100)).await.unwrap() {
            match broadcast {
                Broadcast::Frame { body, .. } if &body[..] == last => return (seen, gap),
                Broadcast::Frame { body, .. } => seen.push(body.to_vec()),
                Broadcast::Gap(hole) => {
                    assert_eq!(hole.cause, GapCause::Reconnect);
                    gap = true;
                }
            }
        }
    }
}

/// Waits until a condition holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until notifications arrive again.
async fn hears(case: &Case<'_>) {
    let live = async || case.bus.health().state == ConnectionState::Live;
    eventually("it never hears again", live).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_acknowledged_and_listeners_get_a_gap() {
    let server = Server::with("");
    let fixture = Postgres::on(&server.address);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let listener = listen(&case).await;
    let stop = Arc::new(AtomicBool::new(false));
    let request = ClaimRequest { lease: Duration::from_secs(2), ..case.request(&group, 50) };
    let consumer = tokio::spawn(consume(case.bus.clone(), request, stop.clone()));
    let publisher = {
        let (bus, stop, topic) = (case.bus.clone(), stop.clone(), case.message("t", "m"));
        tokio::spawn(async move {
            let mut accepted = HashSet::new();
            while !stop.load(Ordering::Relaxed) {
                let batch: Vec<_> = (0..20)
                    .map(|_| eventbus::backend::Message { id: new_id(), ..topic.clone() })
                    .collect();
                let ids: Vec<_> = batch.iter().map(|message| message.id).collect();
                let transactions =
                    batch.into_iter().map(|m| Transaction { ops: vec![Op::Publish(m)] }).collect();
                for (id, result) in ids.into_iter().zip(bus.commit(transactions).await) {
                    if result.is_ok() {
                        accepted.insert(id);
                    }
                }
            }
            accepted
        })
    };
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill();
        server.go();
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stop.store(true, Ordering::Relaxed);
    let accepted = in_time(publisher).await.unwrap();
    assert!(accepted.len() > 100, "{}", accepted.len());
    let mut handled = in_time(consumer).await.unwrap();
    let rest = drain(&case, &group).await;
    handled.extend(rest);
    let lost: Vec<_> = accepted.iter().filter(|id| !handled.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} lost", lost.len(), accepted.len());
    // Only who listens again hears it: commits may be back before.
    hears(&case).await;
    case.publish(case.message("t", "last")).await;
    assert!(until(&*listener, b"last").await.1, "no gap");
    let health = case.bus.health();
    assert!(health.reconnects >= 1 && !health.last_error.is_empty(), "{health:?}");
}

/// Handles what comes until it is told to stop; returns what was acknowledged, or may have been.
async fn consume(
    bus: Arc<dyn Backend>,
    request: ClaimRequest,
    stop: Arc<AtomicBool>,
) -> HashSet<[u8; 16]> {
    let mut handled = HashSet::new();
    while !stop.load(Ordering::Relaxed) {
        let waited =
            tokio::time::timeout(Duration::from_millis(200), bus.wait_ready(&request)).await;
        let Ok(Ok(claimed)) = (match waited {
            Ok(Ok(())) => Ok(bus.claim(&request).await),
            _ => Err(()),
        }) else {
            continue;
        };
        for delivery in claimed {
            let ops = vec![Op::Settle(delivery.lease.clone(), Outcome::Ack)];
            match bus.commit(vec![Transaction { ops }]).await.remove(0) {
                Ok(_) => assert!(handled.insert(delivery.lease.message), "handled twice"),
                Err(error) if error.outcome_unknown() => {
                    handled.insert(delivery.lease.message);
                }
                Err(_) => {}
            }
        }
    }
    handled
}

/// Takes everything that is left, also what a lost answer left claimed.
async fn drain(case: &Case<'_>, group: &Arc<str>) -> Vec<[u8; 16]> {
    let mut found = Vec::new();
    eventually("something stays claimed", async || {
        let claimed = case.claim(group, 1000).await;
        found.extend(claimed.iter().map(|delivery| delivery.lease.message));
        let ack = |delivery: &eventbus::backend::Delivery| Transaction {
            ops: vec![Op::Settle(delivery.lease.clone(), Outcome::Ack)],
        };
        for result in case.bus.commit(claimed.iter().map(ack).collect()).await {
            result.unwrap();
        }
        let stats = case.stats(group).await;
        stats.ready + stats.in_flight == 0
    })
    .await;
    found
}

#[tokio::test]
async fn terminated_sessions_come_back_and_everybody_goes_on() {
    let server = Server::start();
    let fixture = Postgres::on(&server.address);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let listener = listen(&case).await;
    let client = fixture.plain().await;
    for round in 0..3 {
        let (bus, request) = (case.bus.clone(), case.request(&group, 1));
        let waiting = tokio::spawn(async move {
            loop {
                bus.wait_ready(&request).await.unwrap();
                if let Some(delivery) = bus.claim(&request).await.unwrap().pop() {
                    return delivery;
                }
            }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let all = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where application_name = 'eventbus'";
        client.batch_execute(all).await.unwrap();
        let text = format!("after {round}");
        case.publish(case.message("t", &text)).await;
        let delivery = in_time(waiting).await.unwrap();
        assert_eq!(&delivery.body[..], text.as_bytes());
        case.ack(&delivery).await;
        eventually("it never hears again", async || {
            case.bus.health().state == ConnectionState::Live && case.bus.health().reconnects > round
        })
        .await;
        let marker = format!("marker {round}");
        case.publish(case.message("u", &marker)).await;
        assert!(until(&*listener, marker.as_bytes()).await.1, "no gap");
    }
}

#[tokio::test]
async fn an_operation_goes_on_when_the_server_is_back() {
    // Durable, as what was declared must be there afterwards.
    let server = Server::with("");
    let fixture = Postgres::on(&server.address);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    server.kill();
    let (bus, message) = (case.bus.clone(), case.message("t", "1"));
    let publish = tokio::spawn(async move {
        bus.commit(vec![Transaction { ops: vec![Op::Publish(message)] }]).await.remove(0)
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!publish.is_finished());
    server.go();
    in_time(publish).await.unwrap().unwrap();
    assert_eq!(case.drain(&group).await, ["1"]);
}

#[tokio::test]
async fn without_a_server_every_call_ends_in_time_and_by_name() {
    let server = Server::start();
    let mut fixture = Postgres::on(&server.address);
    fixture.config.net.op_timeout = Duration::from_millis(700);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    server.kill();
    let started = Instant::now();
    let publish = case.commit(vec![Op::Publish(case.message("t", "1"))]).await;
    assert!(matches!(&publish, Err(error) if error.is_retryable()), "{publish:?}");
    let claim = case.bus.claim(&case.request(&group, 1)).await;
    assert!(matches!(&claim, Err(error) if error.is_retryable()), "{claim:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let early = fixture.backend_unconnected().connect().await;
    assert!(matches!(early, Err(Error::Connect { .. })), "{early:?}");
    case.bus.close().await.unwrap();
}

#[tokio::test]
async fn a_silent_listening_connection_is_noticed_by_its_heartbeat() {
    let server = Server::start();
    let mut fixture = Postgres::on(&server.address);
    fixture.config.net.heartbeat = Duration::from_millis(200);
    let case = Case::new(&fixture).await;
    let listener = listen(&case).await;
    let client = fixture.plain().await;
    let find = "select pid from pg_stat_activity where application_name = 'eventbus' \
                and query ilike '%pg_listening_channels%'";
    let mut pid = 0;
    eventually("no listening session", async || {
        let found = client.query_opt(find, &[]).await.unwrap();
        pid = found.map_or(0, |row| row.get::<_, i32>(0));
        pid != 0
    })
    .await;
    let signal = |name: &str| {
        let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
        assert!(sent.unwrap().success());
    };
    signal("-STOP");
    eventually("not noticed", async || case.bus.health().reconnects > 0).await;
    signal("-CONT");
    hears(&case).await;
    case.publish(case.message("t", "last")).await;
    assert!(until(&*listener, b"last").await.1, "no gap");
}

#[tokio::test]
async fn behind_a_transaction_pooler_everything_works_by_polling_and_it_is_said() {
    let proxy = Proxy::before(server::shared(), NO_NOTIFICATIONS).await;
    let mut fixture = Postgres::on(&proxy.address);
    fixture.config.sweep = Duration::from_millis(300);
    let case = Case::new(&fixture).await;
    let health = case.bus.health();
    assert_eq!(health.state, ConnectionState::Degraded);
    assert!(health.warnings.iter().any(|text| text.contains("pooler")), "{health:?}");
    let listener = listen(&case).await;
    let group = case.group("g", &[case.on("t")]).await;
    let (bus, request) = (case.bus.clone(), case.request(&group, 1));
    let waiting = tokio::spawn(async move { bus.wait_ready(&request).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Somebody else publishes: only polling finds it.
    let client = fixture.plain().await;
    let publish = format!("select publish('{}', '1')", case.topic("t"));
    client.batch_execute(&publish).await.unwrap();
    in_time(waiting).await.unwrap().unwrap();
    assert_eq!(case.drain(&group).await.len(), 1);
    // What is broadcast is found by polling too.
    let topic = case.topic("t");
    let heard = in_time(listener.next(1)).await.unwrap().pop();
    assert!(
        matches!(&heard, Some(Broadcast::Frame { topic: on, .. }) if *on == topic),
        "{heard:?}"
    );
    case.publish(case.message("t", "own")).await;
    let heard = in_time(listener.next(1)).await.unwrap().pop();
    assert!(matches!(heard, Some(Broadcast::Frame { body, .. }) if body == "own"));
}

#[tokio::test]
async fn tokens_rise_across_a_crash_that_lost_the_newest() {
    let server = Server::start();
    let fixture = Postgres::on(&server.address);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.publish_all("t", &["1", "2"]).await;
    let before = case.one(&group).await.lease;
    server.kill();
    server.go();
    // A claim waits for no disk: a crash may lose it, and the number of its token.
    let client = fixture.plain().await;
    let lose = "update messages set state = 0, token = 0; select setval('tokens', 1)";
    client.batch_execute(lose).await.unwrap();
    for _ in 0..2 {
        let after = case.one(&group).await.lease;
        assert!(after.token > before.token, "{} after {}", after.token, before.token);
    }
    let late = case.commit(vec![Op::Settle(before, Outcome::Ack)]).await;
    assert!(matches!(late, Err(Error::LeaseLost { .. })), "{late:?}");
}

#[tokio::test]
async fn dead_rows_of_a_busy_queue_are_removed() {
    // Autovacuum would hide what the bus does.
    let server = Server::with("-c fsync=off -c autovacuum=off");
    let fixture = Postgres::on(&server.address);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let all = async |ops: Vec<Op>| {
        let batch = ops.into_iter().map(|op| Transaction { ops: vec![op] }).collect();
        assert!(case.bus.commit(batch).await.iter().all(Result::is_ok));
    };
    let client = fixture.plain().await;
    let find =
        "select vacuum_count > 0 from pg_stat_user_tables where relid = 'messages'::regclass";
    eventually("never cleaned", async || {
        all((0..1_000).map(|_| Op::Publish(case.message("t", "m"))).collect()).await;
        let claimed = case.claim(&group, 1_000).await;
        assert_eq!(claimed.len(), 1_000);
        all(claimed.into_iter().map(|one| Op::Settle(one.lease, Outcome::Ack)).collect()).await;
        client.query_one(find, &[]).await.unwrap().get::<_, bool>(0)
    })
    .await;
}

#[tokio::test]
async fn who_only_publishes_is_not_notified() {
    let fixture = Postgres::shared();
    let case = Case::new(&fixture).await;
    let client = fixture.plain().await;
    // What cannot be read is counted by everybody who gets it.
    let text = format!("select pg_notify('eventbus:{}', 'what?')", fixture.config.schema);
    client.batch_execute(&text).await.unwrap();
    case.bus.heard().await.unwrap();
    assert_eq!(case.bus.health().malformed, 0);
    let group = case.group("g", &[case.on("t")]).await;
    let (bus, request) = (case.bus.clone(), case.request(&group, 1));
    let waiting = tokio::spawn(async move { bus.wait_ready(&request).await });
    eventually("it never listens", async || {
        client.batch_execute(&text).await.unwrap();
        case.bus.health().malformed > 0
    })
    .await;
    case.publish_all("t", &["1"]).await;
    in_time(waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_takes_effect_once() {
    let server = Server::start();
    let proxy = Proxy::before(&server.address, PASS).await;
    let fixture = Postgres::on(&proxy.address);
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    let listener = listen(&case).await;
    let mut expected = Vec::new();
    for n in 0..20 {
        let text = n.to_string();
        if n % 3 == 1 {
            proxy.set(CUT);
        }
        case.publish(case.message("t", &text)).await;
        // A broadcast that writes nothing, too.
        case.publish(case.message("u", &format!("u{text}"))).await;
        expected.push(text);
    }
    assert_eq!(case.drain(&group).await, expected);
    assert_eq!(case.stats(&group).await.accepted, 20);
    case.publish(case.message("u", "last")).await;
    let (heard, gap) = until(&*listener, b"last").await;
    let distinct: HashSet<_> = heard.iter().collect();
    assert_eq!(distinct.len(), heard.len(), "heard twice");
    assert!(gap || heard.len() == 40, "{} heard without a gap", heard.len());
}

impl Postgres {
    fn backend_unconnected(&self) -> Arc<dyn Backend> {
        eventbus::bus::open_postgres(self.config.clone()).unwrap()
    }
}
