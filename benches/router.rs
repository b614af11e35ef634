//! W1p: what a lookup costs beside 10,000 patterns that do not match.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use eventbus::topic::{Binding, Pattern, Router};

/// One exact entry that matches every tenth topic, and `count` patterns that match none.
fn router(count: usize, shape: fn(usize) -> String) -> Router<u32> {
    let mut router = Router::default();
    for i in 0..10 {
        router.insert(Binding::Topic(format!("orders:{i}:created").into()), 1);
    }
    for i in 0..count {
        router.insert(Binding::Pattern(Pattern::new(&shape(i))), 2);
    }
    router
}

type Shape = (&'static str, fn(usize) -> String);

fn lookup(criterion: &mut Criterion) {
    let shapes: [Shape; 5] = [
        ("prefix", |i| format!("p{i}:*")),
        ("suffix", |i| format!("*:s{i}")),
        ("inside", |i| format!("*m{i}*")),
        ("mixed", |i| format!("a:*:x{i}:*:b")),
        ("both_ends", |i| format!("t{}:*:s{}", i / 100, i % 100)),
    ];
    let mut group = criterion.benchmark_group("router");
    group.warm_up_time(std::time::Duration::from_millis(500));
    group.measurement_time(std::time::Duration::from_secs(1));
    let all = std::iter::once(("none", 0, shapes[0].1))
        .chain(shapes.iter().map(|(name, shape)| (*name, 10_000, *shape)));
    for (name, count, shape) in all {
        let router = router(count, shape);
        let mut i = 0_usize;
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    i += 1;
                    format!("orders:{i}:created")
                },
                |topic| {
                    let mut sum = 0;
                    router.for_each_match(black_box(&topic), |_, entry| sum += entry);
                    (topic, sum)
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
    criterion.bench_function("router/insert_and_remove_in_10000", |bencher| {
        let mut router = router(10_000, |i| format!("a:*:x{i}:*:b"));
        bencher.iter(|| {
            let id = router.insert(Binding::Pattern(Pattern::new("a:*:y:*:b")), 3);
            router.remove(black_box(id))
        });
    });
}

criterion_group!(benches, lookup);
criterion_main!(benches);
