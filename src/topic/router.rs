//! The index from a topic to every entry that matches it.
//!
//! Exact topics are one hash lookup. A pattern is filed under one *anchor*: some of the literal
//! texts that every topic it matches must hold – what the topic begins with, what it ends with, one
//! text inside, or a combination. A lookup cuts those texts out of the topic for each distinct
//! [`Shape`] (the lengths of the three) and runs only the patterns filed under exactly them. So its
//! cost grows with the number of shapes, not of patterns. Anchors are filed by hash; a collision
//! only means one pattern more to run.

use std::hash::Hash;
use std::sync::Arc;

use ahash::{AHashMap, RandomState};

use super::pattern::{Literals, Pattern};
use super::starts::{Starts, start_of};
use super::{Binding, RouteId};

/// Patterns filed under one anchor before a longer anchor is tried.
const CROWDED: usize = 4;

/// An index from a topic to the entries that match it.
#[derive(Debug)]
pub struct Router<T> {
    next: RouteId,
    places: AHashMap<RouteId, Place>,
    exact: AHashMap<Arc<str>, Vec<(RouteId, T)>>,
    patterns: Patterns<T>,
    work: u64,
}

/// Where an entry is kept.
#[derive(Debug, Clone)]
enum Place {
    Exact(Arc<str>),
    Anchored(Anchor),
    /// Patterns without any literal text.
    Everywhere,
    /// A pattern that nothing matches.
    Nowhere,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    shape: Shape,
    key: u64,
    /// What the text inside begins with; 0 when there is none.
    start: u16,
}

/// The lengths in bytes of the texts of an anchor; 0 = not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Shape {
    inner: usize,
    prefix: usize,
    suffix: usize,
}

#[derive(Debug)]
struct Filed<T> {
    id: RouteId,
    pattern: Pattern,
    entry: T,
}

#[derive(Debug)]
struct Patterns<T> {
    hasher: RandomState,
    anchored: AHashMap<u64, Vec<Filed<T>>>,
    everywhere: Vec<Filed<T>>,
    nowhere: AHashMap<RouteId, T>,
    /// Distinct shapes and how many patterns have each; those without a text inside come first.
    shapes: Vec<(Shape, usize)>,
    starts: Starts,
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self {
            next: 0,
            places: AHashMap::new(),
            exact: AHashMap::new(),
            work: 0,
            patterns: Patterns {
                hasher: RandomState::new(),
                anchored: AHashMap::new(),
                everywhere: Vec::new(),
                nowhere: AHashMap::new(),
                shapes: Vec::new(),
                starts: Starts::default(),
            },
        }
    }
}

impl<T> Router<T> {
    /// Adds an entry.
    pub fn insert(&mut self, binding: Binding, entry: T) -> RouteId {
        self.next += 1;
        let id = self.next;
        let exact = match &binding {
            Binding::Topic(topic) => Some(topic.clone()),
            Binding::Pattern(pattern) => pattern.as_exact().map(Arc::from),
        };
        let place = match (exact, binding) {
            (Some(topic), _) => {
                self.exact.entry(topic.clone()).or_default().push((id, entry));
                Place::Exact(topic)
            }
            (None, Binding::Pattern(pattern)) => {
                let work = pattern.work();
                let place = self.patterns.insert(Filed { id, pattern, entry });
                if self.patterns.is_crowded(&place) {
                    self.work = self.work.saturating_add(work);
                }
                place
            }
            // Never taken: a topic is always exact.
            (None, Binding::Topic(_)) => return id,
        };
        self.places.insert(id, place);
        id
    }

    /// Removes an entry.
    pub fn remove(&mut self, id: RouteId) -> Option<T> {
        match self.places.remove(&id)? {
            Place::Exact(topic) => {
                let bucket = self.exact.get_mut(&topic)?;
                let at = bucket.binary_search_by_key(&id, |(id, _)| *id).ok()?;
                let (_, entry) = bucket.remove(at);
                if bucket.is_empty() {
                    self.exact.remove(&topic);
                }
                Some(entry)
            }
            Place::Anchored(anchor) => self.patterns.remove_anchored(id, anchor),
            Place::Everywhere => take(&mut self.patterns.everywhere, id),
            Place::Nowhere => self.patterns.nowhere.remove(&id),
        }
    }

    /// Returns how many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns how many steps a lookup takes at most, about, because of patterns that the index
    /// cannot tell apart; what was removed still counts.
    #[must_use]
    pub fn work(&self) -> u64 {
        self.work
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether any entry matches.
    #[must_use]
    pub fn has_match(&self, topic: &str) -> bool {
        self.exact.contains_key(topic) || {
            let mut hits = Vec::new();
            self.patterns.collect(topic, &mut hits);
            !hits.is_empty()
        }
    }

    /// Calls `visit` for each entry that matches, in order of insertion.
    pub fn for_each_match<'a>(&'a self, topic: &str, mut visit: impl FnMut(RouteId, &'a T)) {
        let exact = self.exact.get(topic).map_or(&[][..], Vec::as_slice);
        let mut hits = Vec::new();
        self.patterns.collect(topic, &mut hits);
        if hits.is_empty() {
            exact.iter().for_each(|(id, entry)| visit(*id, entry));
            return;
        }
        hits.extend(exact.iter().map(|(id, entry)| (*id, entry)));
        hits.sort_unstable_by_key(|(id, _)| *id);
        // A text that stands at several places of the topic finds its pattern several times.
        hits.dedup_by_key(|(id, _)| *id);
        hits.into_iter().for_each(|(id, entry)| visit(id, entry));
    }
}

impl<T> Patterns<T> {
    fn insert(&mut self, filed: Filed<T>) -> Place {
        if filed.pattern.is_never() {
            self.nowhere.insert(filed.id, filed.entry);
            return Place::Nowhere;
        }
        let Some(anchor) = self.choose(&filed.pattern.literals()) else {
            self.everywhere.push(filed);
            return Place::Everywhere;
        };
        self.anchored.entry(anchor.key).or_default().push(filed);
        match self.shapes.binary_search_by_key(&anchor.shape, |(shape, _)| *shape) {
            Ok(at) => {
                if let Some((_, count)) = self.shapes.get_mut(at) {
                    *count += 1;
                }
            }
            Err(at) => self.shapes.insert(at, (anchor.shape, 1)),
        }
        if anchor.shape.inner > 0 {
            self.starts.add(anchor.start, anchor.shape.inner == 1);
        }
        Place::Anchored(anchor)
    }

    /// Whether a lookup runs patterns there that have little to do with its topic.
    fn is_crowded(&self, place: &Place) -> bool {
        match place {
            Place::Everywhere => true,
            Place::Anchored(anchor) => {
                self.anchored.get(&anchor.key).is_some_and(|bucket| bucket.len() > CROWDED)
            }
            Place::Exact(_) | Place::Nowhere => false,
        }
    }

    fn remove_anchored(&mut self, id: RouteId, anchor: Anchor) -> Option<T> {
        let bucket = self.anchored.get_mut(&anchor.key)?;
        let entry = take(bucket, id)?;
        if bucket.is_empty() {
            self.anchored.remove(&anchor.key);
        }
        if let Ok(at) = self.shapes.binary_search_by_key(&anchor.shape, |(shape, _)| *shape)
            && let Some((_, count)) = self.shapes.get_mut(at)
        {
            *count -= 1;
            if *count == 0 {
                self.shapes.remove(at);
            }
        }
        if anchor.shape.inner > 0 {
            let single = self.shapes.iter().any(|(shape, _)| shape.inner == 1);
            self.starts.remove(anchor.start, single);
        }
        Some(entry)
    }

    /// Returns the first anchor that is not crowded, the cheapest to look up first; else the least
    /// crowded one.
    fn choose(&self, literals: &Literals<'_>) -> Option<Anchor> {
        let (prefix, suffix) = (literals.prefix, literals.suffix);
        let mut inner = literals.inner.clone();
        inner.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let ends = [(prefix, ""), ("", suffix), (prefix, suffix)];
        let alone = inner.iter().map(|text| ("", *text, ""));
        let combined = inner.iter().flat_map(|text| ends.map(|(p, s)| (p, *text, s)));
        let mut best: Option<(usize, Anchor)> = None;
        for (p, text, s) in ends.iter().map(|(p, s)| (*p, "", *s)).chain(alone).chain(combined) {
            if p.is_empty() && text.is_empty() && s.is_empty() {
                continue;
            }
            let anchor = self.anchor(p, text, s);
            let crowd = self.anchored.get(&anchor.key).map_or(0, Vec::len);
            if crowd < CROWDED {
                return Some(anchor);
            }
            if best.is_none_or(|(least, _)| crowd < least) {
                best = Some((crowd, anchor));
            }
        }
        best.map(|(_, anchor)| anchor)
    }

    fn anchor(&self, prefix: &str, inner: &str, suffix: &str) -> Anchor {
        let shape = Shape { inner: inner.len(), prefix: prefix.len(), suffix: suffix.len() };
        let ends = self.hash_ends(prefix.as_bytes(), suffix.as_bytes());
        Anchor {
            shape,
            key: self.hash_inner(ends, inner.as_bytes()),
            start: start_of(inner.as_bytes()),
        }
    }

    fn hash_ends(&self, prefix: &[u8], suffix: &[u8]) -> u64 {
        let side = |text: &[u8]| if text.is_empty() { 0 } else { self.hash(text) };
        side(prefix).wrapping_mul(3) ^ side(suffix).rotate_left(32)
    }

    fn hash_inner(&self, ends: u64, inner: &[u8]) -> u64 {
        if inner.is_empty() { ends } else { ends.wrapping_mul(5) ^ self.hash(inner) }
    }

    fn hash(&self, text: &[u8]) -> u64 {
        self.hasher.hash_one(Text(text))
    }

    fn collect<'a>(&'a self, topic: &str, hits: &mut Vec<(RouteId, &'a T)>) {
        run(&self.everywhere, topic, hits);
        if self.shapes.is_empty() {
            return;
        }
        let bytes = topic.as_bytes();
        let mut first_start = None;
        for (shape, _) in &self.shapes {
            let longest = shape.inner.max(shape.prefix).max(shape.suffix);
            if longest > bytes.len() {
                continue;
            }
            let (prefix, suffix) = (&bytes[..shape.prefix], &bytes[bytes.len() - shape.suffix..]);
            if shape.inner == 0 {
                self.run_anchored(self.hash_ends(prefix, suffix), topic, hits);
                continue;
            }
            let from = *first_start.get_or_insert_with(|| self.starts.next(bytes, 0));
            let Some(mut at) = from else { return };
            let ends = self.hash_ends(prefix, suffix);
            while let Some(window) = bytes.get(at..at + shape.inner) {
                self.run_anchored(self.hash_inner(ends, window), topic, hits);
                match self.starts.next(bytes, at + 1) {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
    }

    fn run_anchored<'a>(&'a self, key: u64, topic: &str, hits: &mut Vec<(RouteId, &'a T)>) {
        if let Some(bucket) = self.anchored.get(&key) {
            run(bucket, topic, hits);
        }
    }
}

/// Hashes bytes without the length that slices add.
struct Text<'a>(&'a [u8]);

impl Hash for Text<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write(self.0);
    }
}

fn run<'a, T>(bucket: &'a [Filed<T>], topic: &str, hits: &mut Vec<(RouteId, &'a T)>) {
    for filed in bucket {
        if filed.pattern.matches(topic) {
            hits.push((filed.id, &filed.entry));
        }
    }
}

/// Takes an entry out of a bucket, which is in order of insertion.
fn take<T>(bucket: &mut Vec<Filed<T>>, id: RouteId) -> Option<T> {
    let at = bucket.binary_search_by_key(&id, |filed| filed.id).ok()?;
    Some(bucket.remove(at).entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removal_leaves_nothing_behind() {
        let mut router = Router::default();
        let texts =
            ["a", "p1:*", "*:s", "*m1*", "x*m*y", "*", "?", "[b-a]", "*é*", "a*b*c", "t*q*"];
        let ids: Vec<RouteId> = (0..20)
            .flat_map(|_| texts)
            .map(|text| router.insert(Binding::Pattern(Pattern::new(text)), ()))
            .collect();
        assert_eq!(router.len(), ids.len());
        for id in ids.iter().rev() {
            assert_eq!(router.remove(*id), Some(()));
            assert_eq!(router.remove(*id), None);
        }
        assert!(router.is_empty() && router.exact.is_empty());
        let patterns = &router.patterns;
        assert!(patterns.anchored.is_empty() && patterns.shapes.is_empty());
        assert!(patterns.everywhere.is_empty() && patterns.nowhere.is_empty());
        assert!(patterns.starts.is_clear());
    }

    #[test]
    fn the_work_of_patterns_that_the_index_cannot_tell_apart_adds_up() {
        let work = |texts: &mut dyn Iterator<Item = String>| {
            let mut router = Router::default();
            texts.for_each(|text| {
                router.insert(Binding::Pattern(Pattern::new(&text)), ());
            });
            router.work()
        };
        assert_eq!(work(&mut (0..10_000).map(|n| format!("t{n}:*order*:s"))), 0);
        assert!(work(&mut (0..10_000).map(|_| "*".to_owned())) <= 30_000);
        assert!(work(&mut (0..10_000).map(|_| "orders:*".to_owned())) <= 30_000);
        let slow = format!("*{}*", "?".repeat(127));
        assert!(work(&mut (0..100).map(|_| slow.clone())) > 1_000_000);
    }

    #[test]
    fn patterns_that_share_one_end_are_told_apart_by_the_rest() {
        let mut router = Router::default();
        for i in 0..100 {
            for j in 0..100 {
                let pattern = Pattern::new(&format!("t{i}:*order*:s{j}"));
                router.insert(Binding::Pattern(pattern), (i, j));
            }
        }
        let most = router.patterns.anchored.values().map(Vec::len).max();
        assert!(most.is_some_and(|most| most <= CROWDED), "{most:?}");
        let mut seen = Vec::new();
        router.for_each_match("t7:an order:s9", |_, entry| seen.push(*entry));
        assert_eq!(seen, [(7, 9)]);
    }
}
