//! Replay where only Redis can go wrong: a crash, lost data, a clock that goes back; and what a bus
//! pays that keeps nothing.

use std::time::Duration;

use eventbus::backend::{Backend, Broadcast, GapCause, ListenRequest, Listener, Overflow, Since};
use eventbus::config::{NetConfig, RedisConfig};
use redis::aio::MultiplexedConnection;
use redis::cmd;

use super::OnRedis;
use super::conformance::{Case, LONG, in_time};
use super::redis_server::RedisServer;

async fn plain(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn replay(case: &Case<'_>, since: Since) -> Box<dyn Listener> {
    let (bindings, overflow) = (vec![case.like("*")], Overflow::DropOldest);
    let request = ListenRequest { bindings, buffer: 100, overflow, since: Some(since) };
    case.bus.listen(request).await.unwrap()
}

async fn until(listener: &dyn Listener, last: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    while seen.last().is_none_or(|text| text != last) {
        let some = in_time(listener.next(100)).await.unwrap();
        assert!(!some.is_empty(), "it ended after {seen:?}");
        for item in some {
            seen.push(match item {
                Broadcast::Frame { body, .. } => String::from_utf8(body.to_vec()).unwrap(),
                Broadcast::Gap(gap) => {
                    assert_eq!(gap.cause, GapCause::Retention);
                    "gap".into()
                }
            });
        }
    }
    seen
}

/// Connects with intervals that fit a test.
async fn quick(
    fixture: &OnRedis,
    retention: Option<Duration>,
) -> eventbus::backend::redis::RedisBackend {
    let net = NetConfig { heartbeat: Duration::from_millis(300), ..fixture.0.config().net };
    let sweep = Duration::from_millis(200);
    let config = RedisConfig { net, sweep, retention, ..fixture.0.config() };
    let backend = eventbus::backend::redis::RedisBackend::new(config).unwrap();
    backend.connect().await.unwrap();
    backend
}

#[tokio::test]
async fn a_server_that_crashed_goes_on_where_it_was() {
    let mut fixture = OnRedis(RedisServer::start());
    let reader = quick(&fixture, Some(LONG)).await;
    let request = ListenRequest {
        bindings: vec![eventbus::topic::Binding::Topic("t".into())],
        buffer: 100,
        overflow: Overflow::DropOldest,
        since: Some(Since::Beginning),
    };
    let listener = reader.listen(request).await.unwrap();
    for round in 0..3 {
        {
            let case = Case::new(&fixture).await;
            for n in 0..20 {
                let body = format!("{round}:{n}");
                let message = case.message("x", &body);
                case.publish(eventbus::backend::Message { topic: "t".into(), ..message }).await;
            }
        }
        fixture.0.kill();
        fixture.0.restart();
    }
    let wanted: Vec<String> =
        (0..3).flat_map(|round| (0..20).map(move |n| format!("{round}:{n}"))).collect();
    assert_eq!(until(&*listener, "2:19").await, wanted);
}

#[tokio::test]
async fn lost_data_is_a_gap_and_is_kept_again() {
    let fixture = OnRedis(RedisServer::start());
    let mut case = Case::new(&fixture).await;
    let other =
        std::mem::replace(&mut case.bus, std::sync::Arc::new(quick(&fixture, Some(LONG)).await));
    let listener = replay(&case, Since::Beginning).await;
    case.publish_all("t", &["0", "1"]).await;
    assert_eq!(until(&*listener, "1").await, ["0", "1"]);
    let mut server = plain(&fixture.0).await;
    let _: () = cmd("FLUSHALL").query_async(&mut server).await.unwrap();
    // The server forgot that it shall keep: the reader tells it again, and then every publisher.
    let told = async {
        loop {
            let known: bool =
                cmd("EXISTS").arg("{eventbus:0}:config").query_async(&mut server).await.unwrap();
            if known {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(told).await;
    let reader = std::mem::replace(&mut case.bus, other);
    case.publish_all("t", &["2", "3"]).await;
    assert_eq!(until(&*listener, "3").await, ["gap", "2", "3"]);
    reader.close().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_goes_back_changes_no_order() {
    let fixture = OnRedis(RedisServer::start());
    let case = Case::keeping(&fixture, None, Some(100)).await;
    let first = case.publish_all("t", &["0"]).await;
    let mut server = plain(&fixture.0).await;
    let future = "99999999999999-1";
    let _: () =
        cmd("XSETID").arg("{eventbus:0}:log").arg(future).query_async(&mut server).await.unwrap();
    case.publish_all("t", &["1", "2"]).await;
    let all = replay(&case, Since::Beginning).await;
    assert_eq!(until(&*all, "2").await, ["0", "1", "2"]);
    let behind = replay(&case, Since::Event(first[0])).await;
    assert_eq!(until(&*behind, "2").await, ["1", "2"]);
}

#[tokio::test]
async fn a_bus_that_keeps_nothing_pays_nothing() {
    let fixture = OnRedis(RedisServer::start());
    let case = Case::new(&fixture).await;
    case.publish_all("t", &["warm"]).await;
    let mut server = plain(&fixture.0).await;
    let _: () = cmd("CONFIG").arg("RESETSTAT").query_async(&mut server).await.unwrap();
    case.publish_all("t", &["1", "2"]).await;
    let stats: String = cmd("INFO").arg("commandstats").query_async(&mut server).await.unwrap();
    let used: std::collections::BTreeSet<&str> = stats
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next())
        .filter(|name| !["info", "ping", "config|resetstat"].contains(name))
        .collect();
    let wanted = ["evalsha", "get", "hincrby", "publish", "set"];
    assert_eq!(used.into_iter().collect::<Vec<_>>(), wanted);
}
