//! What the memory backend costs per message: publish, claim and settle, and the cold topic.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use eventbus::backend::memory::MemoryBackend;
use eventbus::backend::{
    Backend, ClaimRequest, Delivery, Due, GroupSpec, ListenRequest, Message, Op, Outcome, Overflow,
    Transaction,
};
use eventbus::topic::{Binding, Pattern};

/// Polls a future that completes at once, as the bindings do.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it did not complete at once"),
    }
}

fn message(topic: &Arc<str>, n: u64) -> Message {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    Message {
        id,
        topic: Arc::clone(topic),
        body: Bytes::from_static(&[7; 200]),
        key: None,
        priority: 0,
        due: Due::Now,
        expires_after: None,
        dedup_id: None,
        unique: None,
        broadcast: true,
        event: id,
    }
}

fn declare(bus: &MemoryBackend, name: &str, bindings: Vec<Binding>) -> ClaimRequest {
    let spec = GroupSpec { name: name.into(), bindings: bindings.clone(), max_length: None };
    now(bus.declare_group(spec)).unwrap();
    ClaimRequest {
        group: name.into(),
        bindings: bindings.into(),
        max: 16,
        lease: Duration::from_secs(30),
        max_deliveries: 5,
    }
}

fn publish(bus: &MemoryBackend, message: Message) {
    let batch = vec![Transaction { ops: vec![Op::Publish(message)] }];
    black_box(now(bus.commit(batch)));
}

fn ack(delivery: Delivery) -> Transaction {
    Transaction { ops: vec![Op::Settle(delivery.lease, Outcome::Ack)] }
}

fn life(c: &mut Criterion) {
    let mut group = c.benchmark_group("life");
    let topic: Arc<str> = "orders:created".into();
    for groups in [1, 10] {
        let bus = MemoryBackend::default();
        let requests: Vec<_> = (0..groups)
            .map(|n| declare(&bus, &format!("g{n}"), vec![Binding::Topic(topic.clone())]))
            .collect();
        let mut n = 0;
        group.throughput(Throughput::Elements(16));
        group.bench_function(format!("publish 16, claim 16, ack 16; {groups} groups"), |b| {
            b.iter(|| {
                for _ in 0..16 {
                    n += 1;
                    publish(&bus, message(&topic, n));
                }
                for request in &requests {
                    let claimed = now(bus.claim(request)).unwrap();
                    assert_eq!(claimed.len(), 16);
                    let batch = claimed.into_iter().map(ack).collect();
                    black_box(now(bus.commit(batch)));
                }
            });
        });
    }
    let bus = MemoryBackend::default();
    let request = declare(&bus, "g", vec![Binding::Topic(topic.clone())]);
    let one = ClaimRequest { max: 1, ..request };
    let mut n = 0;
    group.throughput(Throughput::Elements(1));
    group.bench_function("publish 1, claim 1, ack 1", |b| {
        b.iter(|| {
            n += 1;
            publish(&bus, message(&topic, n));
            let claimed = now(bus.claim(&one)).unwrap();
            black_box(now(bus.commit(claimed.into_iter().map(ack).collect())));
        });
    });
    for _ in 0..100_000 {
        n += 1;
        publish(&bus, message(&topic, n));
    }
    group.bench_function("publish 1, claim 1, ack 1; behind 100 000", |b| {
        b.iter(|| {
            n += 1;
            publish(&bus, message(&topic, n));
            let claimed = now(bus.claim(&one)).unwrap();
            black_box(now(bus.commit(claimed.into_iter().map(ack).collect())));
        });
    });
    group.finish();
}

fn flood(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    let topic: Arc<str> = "orders:created".into();
    let bus = MemoryBackend::default();
    declare(&bus, "g", vec![Binding::Topic(topic.clone())]);
    let mut n = 0;
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1000 in one transaction", |b| {
        b.iter_batched(
            || {
                now(bus.purge("g")).unwrap();
                let ops = (0..1000).map(|_| {
                    n += 1;
                    Op::Publish(message(&topic, n))
                });
                vec![Transaction { ops: ops.collect() }]
            },
            |batch| black_box(now(bus.commit(batch))),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn routing(c: &mut Criterion) {
    let mut group = c.benchmark_group("routing");
    let cold: Arc<str> = "nobody:listens".into();
    let bus = MemoryBackend::default();
    group.bench_function("has_queue, no group at all", |b| b.iter(|| bus.has_queue(&cold)));
    for n in 0..1000 {
        declare(&bus, &format!("g{n}"), vec![Binding::Topic(format!("topic:{n}").into())]);
    }
    group.bench_function("has_queue, cold topic, 1000 topics", |b| b.iter(|| bus.has_queue(&cold)));
    declare(&bus, "p", vec![Binding::Pattern(Pattern::new("audit:*"))]);
    group.bench_function("has_queue, cold topic, 1000 topics and a pattern", |b| {
        b.iter(|| bus.has_queue(&cold));
    });
    let mut n = 0;
    group.bench_function("publish, cold topic, 1000 topics and a pattern", |b| {
        b.iter(|| {
            n += 1;
            publish(&bus, message(&cold, n));
        });
    });
    group.finish();
}

fn broadcast(c: &mut Criterion) {
    let mut group = c.benchmark_group("broadcast");
    let topic: Arc<str> = "orders:created".into();
    let bus = MemoryBackend::default();
    let listeners: Vec<_> = (0..10)
        .map(|_| {
            let bindings = vec![Binding::Topic(topic.clone())];
            let overflow = Overflow::DropOldest;
            let request = ListenRequest { bindings, buffer: 1024, overflow, since: None };
            now(bus.listen(request)).unwrap()
        })
        .collect();
    let mut n = 0;
    group.throughput(Throughput::Elements(160));
    group.bench_function("16 to 10 listeners, taken together", |b| {
        b.iter(|| {
            for _ in 0..16 {
                n += 1;
                publish(&bus, message(&topic, n));
            }
            for listener in &listeners {
                assert_eq!(now(listener.next(100)).unwrap().len(), 16);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, life, flood, routing, broadcast);
criterion_main!(benches);
