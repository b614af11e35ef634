//! One compiled `fnmatch` pattern: the answer of Python's `fnmatch.fnmatchcase` for every text.

mod regex;

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::LONGEST;

/// A compiled `fnmatch` pattern: the answer of Python's `fnmatch.fnmatchcase` for every text.
///
/// `*` and `?` cross `:` and newlines, `[seq]` and `[!seq]` are sets with ranges, `[^x]` is a set
/// that holds `^`, an unclosed `[` and `\` are ordinary characters. Every text is a pattern.
/// Matching never backtracks over more than one `*`: at worst length of pattern × length of topic.
#[derive(Debug, Clone)]
pub struct Pattern {
    inner: Arc<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    text: Arc<str>,
    /// Holds a set that nothing is in, so nothing matches.
    never: bool,
    /// What the topic begins with; the whole pattern when there is no `*`.
    head: Segment,
    /// Between two `*`, in order.
    middle: Vec<Segment>,
    /// After the last `*`; `None` when there is no `*`.
    tail: Option<Segment>,
}

/// Parts that follow each other without a `*` between them; each takes a fixed number of characters.
#[derive(Debug, Default)]
struct Segment {
    parts: Vec<Part>,
    chars: usize,
}

#[derive(Debug)]
enum Part {
    Text(String),
    AnyChar,
    Set(CharSet),
}

#[derive(Debug)]
struct CharSet {
    negated: bool,
    ranges: Vec<(char, char)>,
}

/// The texts that every matching topic holds; what the router looks patterns up by.
#[derive(Debug, Default)]
pub(super) struct Literals<'a> {
    /// The topic begins with it.
    pub(super) prefix: &'a str,
    /// The topic ends with it; never overlaps the prefix in the pattern.
    pub(super) suffix: &'a str,
    /// The topic holds each of them somewhere.
    pub(super) inner: Vec<&'a str>,
}

impl Pattern {
    /// Compiles a pattern; every text is one.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        // No set is open beyond it, so looking for its end never reads anything twice.
        let last_close = chars.iter().rposition(|&c| c == ']').unwrap_or(0);
        let mut never = false;
        let mut segments = vec![Segment::default()];
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            at += 1;
            let Some(segment) = segments.last_mut() else { break };
            match c {
                '*' => segments.push(Segment::default()),
                '?' => segment.push(Part::AnyChar),
                '[' if at > last_close => segment.push_char('['),
                '[' => match set_end(&chars, at) {
                    None => segment.push_char('['),
                    Some(end) => {
                        match parse_set(chars.get(at..end).unwrap_or_default()) {
                            SetKind::Empty => never = true,
                            SetKind::Char(c) => segment.push_char(c),
                            SetKind::Any => segment.push(Part::AnyChar),
                            SetKind::Set(set) => segment.push(Part::Set(set)),
                        }
                        at = end + 1;
                    }
                },
                _ => segment.push_char(c),
            }
        }
        let tail = if segments.len() > 1 { segments.pop() } else { None };
        let mut rest = segments.into_iter();
        let head = rest.next().unwrap_or_default();
        let middle = rest.filter(|segment| !segment.parts.is_empty()).collect();
        Self { inner: Arc::new(Compiled { text: text.into(), never, head, middle, tail }) }
    }

    /// Returns the text it was made from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.inner.text
    }

    /// Returns what every matching topic begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.literals().prefix
    }

    /// Whether the whole topic matches.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let this = &*self.inner;
        if this.never {
            return false;
        }
        let Some(rest) = this.head.strip(topic) else { return false };
        let Some(tail) = &this.tail else { return rest.is_empty() };
        let Some((mut rest, end)) = split_last_chars(rest, tail.chars) else { return false };
        if tail.strip(end).is_none() {
            return false;
        }
        for segment in &this.middle {
            match segment.find(rest) {
                Some(after) => rest = after,
                None => return false,
            }
        }
        true
    }

    /// Returns how many steps a match against a topic of the greatest length takes at most, about.
    pub(super) fn work(&self) -> u64 {
        let this = &*self.inner;
        let ends = this.head.work() + this.tail.as_ref().map_or(0, Segment::work);
        // Between two `*` every place is tried.
        let places = |segment: &Segment| LONGEST.saturating_sub(segment.chars) as u64 + 1;
        let middle = this.middle.iter().map(|segment| segment.work() * places(segment));
        1 + ends + middle.sum::<u64>()
    }

    /// Returns the one topic it matches, when it matches exactly one.
    pub(super) fn as_exact(&self) -> Option<&str> {
        let this = &*self.inner;
        match (this.never, &this.tail, this.head.parts.as_slice()) {
            (false, None, []) => Some(""),
            (false, None, [Part::Text(text)]) => Some(text),
            _ => None,
        }
    }

    /// Whether no topic matches it.
    pub(super) fn is_never(&self) -> bool {
        self.inner.never
    }

    /// Returns the texts that every matching topic holds.
    pub(super) fn literals(&self) -> Literals<'_> {
        let this = &*self.inner;
        let mut found = Literals::default();
        let segments = || std::iter::once(&this.head).chain(&this.middle).chain(&this.tail);
        let last = segments().count() - 1;
        for (index, segment) in segments().enumerate() {
            for (place, part) in segment.parts.iter().enumerate() {
                let Part::Text(text) = part else { continue };
                if index == 0 && place == 0 {
                    found.prefix = text;
                } else if index == last && place + 1 == segment.parts.len() {
                    found.suffix = text;
                } else {
                    found.inner.push(text);
                }
            }
        }
        found
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.inner.text == other.inner.text
    }
}

impl Eq for Pattern {}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.text.hash(state);
    }
}

impl Segment {
    fn push(&mut self, part: Part) {
        self.chars += 1;
        self.parts.push(part);
    }

    fn push_char(&mut self, c: char) {
        self.chars += 1;
        match self.parts.last_mut() {
            Some(Part::Text(text)) => text.push(c),
            _ => self.parts.push(Part::Text(c.into())),
        }
    }

    /// Returns how many steps a match at one place takes.
    fn work(&self) -> u64 {
        let steps = |part: &Part| match part {
            Part::Text(_) | Part::AnyChar => 1,
            Part::Set(set) => 1 + set.ranges.len() as u64,
        };
        self.parts.iter().map(steps).sum()
    }

    /// Matches at the beginning of `text`; returns what follows.
    fn strip<'t>(&self, mut text: &'t str) -> Option<&'t str> {
        for part in &self.parts {
            text = match part {
                Part::Text(literal) => text.strip_prefix(literal.as_str())?,
                Part::AnyChar => {
                    let mut chars = text.chars();
                    chars.next()?;
                    chars.as_str()
                }
                Part::Set(set) => {
                    let mut chars = text.chars();
                    if !set.holds(chars.next()?) {
                        return None;
                    }
                    chars.as_str()
                }
            };
        }
        Some(text)
    }

    /// Matches at the leftmost place possible; returns what follows.
    fn find<'t>(&self, mut text: &'t str) -> Option<&'t str> {
        loop {
            if let Some(Part::Text(literal)) = self.parts.first() {
                text = text.get(text.find(literal.as_str())?..)?;
            }
            if let Some(after) = self.strip(text) {
                return Some(after);
            }
            let mut chars = text.chars();
            chars.next()?;
            text = chars.as_str();
        }
    }
}

impl CharSet {
    fn holds(&self, c: char) -> bool {
        self.ranges.iter().any(|&(low, high)| low <= c && c <= high) != self.negated
    }
}

/// Splits off the last `count` characters; `None` when there are fewer.
fn split_last_chars(text: &str, count: usize) -> Option<(&str, &str)> {
    match count {
        0 => Some((text, "")),
        _ => text.char_indices().rev().nth(count - 1).map(|(at, _)| text.split_at(at)),
    }
}

#[cfg(test)]
thread_local! {
    /// Characters that were looked at, or moved, more than once.
    static LOOKED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Returns the index of the `]` that closes a set whose content begins at `start`.
fn set_end(chars: &[char], start: usize) -> Option<usize> {
    let mut at = start;
    if chars.get(at) == Some(&'!') {
        at += 1;
    }
    if chars.get(at) == Some(&']') {
        at += 1;
    }
    let found = chars.get(at..)?.iter().position(|&c| c == ']').map(|offset| at + offset);
    #[cfg(test)]
    LOOKED.set(LOOKED.get() + found.unwrap_or(chars.len()) - at);
    found
}

enum SetKind {
    /// Nothing is in it.
    Empty,
    /// Everything is.
    Any,
    /// One character is.
    Char(char),
    Set(CharSet),
}

/// A character of a set, and whether a hyphen there separates the ends of a range.
type SetChar = (char, bool);

fn parse_set(content: &[char]) -> SetKind {
    let mut items = range_items(content);
    match items.first() {
        None => return SetKind::Empty,
        Some(('!', _)) if items.len() == 1 => return SetKind::Any,
        Some(_) => {}
    }
    let negated = items.first().is_some_and(|&(c, _)| c == '!');
    if negated {
        items.remove(0);
    }
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(&(low, _)) = items.get(at) {
        match (items.get(at + 1), items.get(at + 2)) {
            (Some(('-', true)), Some(&(high, _))) => {
                ranges.push((low, high));
                at += 3;
            }
            _ => {
                ranges.push((low, low));
                at += 1;
            }
        }
    }
    match ranges.as_slice() {
        [(low, high)] if low == high && !negated => SetKind::Char(*low),
        _ => SetKind::Set(CharSet { negated, ranges }),
    }
}

/// Finds the ranges of a set the way CPython does: hyphens split the content into chunks, a range
/// lies between the ends of two chunks, and a reversed range disappears together with both its ends.
///
/// Chunks are joined from right to left and backwards, so each character is moved once.
fn range_items(content: &[char]) -> Vec<SetChar> {
    let mut chunks = chunks(content).into_iter().rev();
    let mut joined: Vec<Vec<char>> = Vec::new();
    let mut right: Vec<char> = chunks.next().unwrap_or_default();
    right.reverse();
    for left in chunks {
        match (left.split_last(), right.last()) {
            (Some((low, rest)), Some(high)) if low > high => {
                right.pop();
                right.extend(rest.iter().rev());
                #[cfg(test)]
                LOOKED.set(LOOKED.get() + rest.len());
            }
            _ => {
                let next = left.into_iter().rev().collect();
                joined.push(std::mem::replace(&mut right, next));
            }
        }
    }
    joined.push(right);
    let mut items = Vec::with_capacity(content.len());
    for (index, chunk) in joined.into_iter().rev().enumerate() {
        if index > 0 {
            items.push(('-', true));
        }
        items.extend(chunk.into_iter().rev().map(|c| (c, false)));
    }
    items
}

/// Splits the content of a set at the hyphens that separate the ends of a range.
fn chunks(content: &[char]) -> Vec<Vec<char>> {
    let mut chunks: Vec<Vec<char>> = Vec::new();
    let mut start = 0;
    let mut from = if content.first() == Some(&'!') { 2 } else { 1 };
    while let Some(hyphen) = find_hyphen(content, from) {
        chunks.push(content.get(start..hyphen).unwrap_or_default().to_vec());
        start = hyphen + 1;
        from = hyphen + 3;
    }
    let rest = content.get(start..).unwrap_or_default();
    match chunks.last_mut() {
        Some(last) if rest.is_empty() => last.push('-'),
        _ => chunks.push(rest.to_vec()),
    }
    chunks
}

fn find_hyphen(content: &[char], from: usize) -> Option<usize> {
    content.get(from..)?.iter().position(|&c| c == '-').map(|offset| from + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_stars_do_not_blow_up() {
        let pattern = Pattern::new(&"*a".repeat(60));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(5_000))));
        assert!(pattern.matches(&"a".repeat(5_000)));
    }

    #[test]
    fn brackets_without_an_end_are_looked_at_once() {
        for (start, unit) in
            [("", "["), ("[]", "["), ("]", "["), ("", "[!"), ("[", "z-y-"), ("", "[]a")]
        {
            let steps = |count: usize| {
                LOOKED.set(0);
                let end = if start == "[" { "]" } else { "" };
                let pattern = Pattern::new(&format!("{start}{}{end}", unit.repeat(count)));
                assert!(!pattern.matches("?"), "{unit}");
                LOOKED.get()
            };
            let (one, two) = (steps(10_000), steps(20_000));
            assert!(two <= 2 * one + 100 && two <= 200_000, "{start}{unit}: {one} {two}");
        }
    }

    #[test]
    fn literals_are_cut_out_of_a_pattern() {
        let pattern = Pattern::new("a:*:x1?y:*[bc]:b");
        let found = pattern.literals();
        assert_eq!((found.prefix, found.suffix), ("a:", ":b"));
        assert_eq!(found.inner, [":x1", "y:"]);
        assert_eq!(Pattern::new("a[*]b").as_exact(), Some("a*b"));
        assert_eq!(Pattern::new("?a").literals().suffix, "a");
        assert!(Pattern::new("a[b-a]c").is_never());
    }
}
