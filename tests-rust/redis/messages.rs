//! What the index of repeated events leaves on a server: nothing.

use eventbus::backend::{
    Backend, Due, EventKey, Message, MessageAction, Op, Outcome, Transaction, identity,
};
use redis::cmd;

use super::OnRedis;
use super::conformance::{Case, LONG, new_id};
use super::redis_server::RedisServer;

async fn indexed(fixture: &OnRedis) -> u64 {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", fixture.0.port)).unwrap();
    let mut server = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = cmd("KEYS").arg("*:r").query_async(&mut server).await.unwrap();
    let mut sum = 0;
    for key in keys {
        sum += cmd("ZCARD").arg(key).query_async::<u64>(&mut server).await.unwrap();
    }
    sum
}

fn once_more(case: &Case<'_>, event: EventKey) -> Message {
    Message { id: identity::again(&event, &new_id()), event, ..case.message("t", "m") }
}

async fn each(bus: &dyn Backend, ops: Vec<Op>) {
    let transactions = ops.into_iter().map(|op| Transaction { ops: vec![op] }).collect();
    assert!(bus.commit(transactions).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn the_index_holds_what_waits_of_repeated_events_and_nothing_else() {
    let fixture = OnRedis(RedisServer::start());
    let case = Case::new(&fixture).await;
    let group = case.group("g", &[case.on("t")]).await;
    case.group("h", &[case.on("t")]).await;
    case.bus.delete_group(&case.topic("h")).await.unwrap();
    let event = new_id();
    // Alone, in a batch, in a transaction, with options, and new events that need no index.
    case.publish(once_more(&case, event)).await;
    each(&*case.bus, (0..5).map(|_| Op::Publish(once_more(&case, event))).collect()).await;
    case.commit((0..3).map(|_| Op::Publish(once_more(&case, event))).collect()).await.unwrap();
    case.publish(Message { key: Some("k".into()), ..once_more(&case, event) }).await;
    case.publish(Message { due: Due::After(LONG), ..once_more(&case, event) }).await;
    case.publish_all("t", &["new"; 4]).await;
    assert_eq!(indexed(&fixture).await, 11);
    // Acknowledged alone and in a batch, given back, dead and retried, cancelled.
    let held = case.claim(&group, 9).await;
    case.ack(&held[0]).await;
    let ack = |at: usize| Op::Settle(held[at].lease.clone(), Outcome::Ack);
    each(&*case.bus, (1..4).map(ack).collect()).await;
    assert_eq!(indexed(&fixture).await, 7);
    case.settle(&held[4], Outcome::Release).await.unwrap();
    case.reject(&held[5], "no").await;
    assert_eq!(indexed(&fixture).await, 6);
    case.bus.retry_dead(&group, &[held[5].lease.message]).await.unwrap();
    assert_eq!(indexed(&fixture).await, 7);
    assert_eq!(case.bus.act_on(None, event, MessageAction::Cancel).await.unwrap(), 4);
    assert_eq!(indexed(&fixture).await, 3);
    each(&*case.bus, (6..9).map(ack).collect()).await;
    assert_eq!(indexed(&fixture).await, 0);
    assert_eq!(case.drain(&group).await, ["new"; 4]);
    // A deleted group takes its index along.
    case.publish(once_more(&case, event)).await;
    assert_eq!(indexed(&fixture).await, 1);
    case.bus.delete_group(&group).await.unwrap();
    assert_eq!(indexed(&fixture).await, 0);
}
