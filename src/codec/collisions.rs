//! Refuses sets and maps whose members would collide, before Python pays for it.
//!
//! Python's hash of a number, a UUID, a `Decimal`, a datetime, a tuple or a frozenset is no secret:
//! a sender can choose as many members of one hash as he likes, and others that walk through the
//! places of each other. So the hashes go through a table of our own first, which takes the places
//! that the tables of CPython 3.11 to 3.14 take. Text and bytes are left out: their hash is made
//! with a key of the process (unless somebody sets `PYTHONHASHSEED=0`).

use crate::error::{Error, Result};

/// Most members of one hash in a set or map; collections of no more are not looked at, unless it
/// takes long to compare their members.
pub const MOST_EQUAL: usize = 64;

/// Most places to look at for one member of a map, on average; a set looks at ten neighbours at a
/// time.
const MOST_STEPS: usize = 128;
/// Places to look at that are given to every collection.
const FREE_STEPS: usize = 1 << 12;

/// A member from here on is long to compare.
pub const LONG: usize = 512;

/// What comparing members of one hash may cost in one message, in bytes that are compared.
#[derive(Debug)]
pub struct Budget(u64);

impl Budget {
    /// Makes one for a message of so many bytes.
    #[must_use]
    pub fn new(message: usize) -> Self {
        Self((message as u64).saturating_mul(64).saturating_add(1 << 16))
    }

    /// Takes what it costs to compare two members of one hash.
    fn take(&mut self, one: &Member, other: &Member) -> Result<()> {
        let bytes = u64::from(one.bytes) + u64::from(other.bytes);
        // An item of a frozenset is compared with each of its hash in the other one.
        let frozen = one.frozen.max(other.frozen);
        let mut cost = bytes.saturating_mul(u64::from(frozen.width).saturating_pow(frozen.depth));
        // An integer is converted first when it is compared with a Decimal.
        if (one.is_mixed || other.is_mixed) && bytes > LONG as u64 {
            cost = cost.saturating_mul(bytes / MOST_EQUAL as u64);
        }
        self.0 = self.0.checked_sub(cost).ok_or_else(|| {
            refused("members of equal hashes that take too long to compare".to_owned())
        })?;
        Ok(())
    }
}

/// The frozensets in a value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Frozen {
    /// How deep they are nested.
    depth: u32,
    /// How many members of one hash the largest may have.
    width: u32,
}

impl Frozen {
    /// Returns what holds for both together.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { depth: self.depth.max(other.depth), width: self.width.max(other.width) }
    }

    /// Returns what holds for a frozenset of `len` members that hold these.
    #[must_use]
    pub fn around(self, len: usize) -> Self {
        let width = u32::try_from(len.min(MOST_EQUAL)).unwrap_or_default();
        Self { depth: self.depth + 1, width: self.width.max(width) }
    }
}

/// What is known of a member before it is inserted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Member {
    /// How many bytes of the message it took.
    pub bytes: u32,
    /// The frozensets in it.
    pub frozen: Frozen,
    /// The message holds long integers and decimals.
    pub is_mixed: bool,
}

/// What a table belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A set or frozenset.
    Set,
    /// A dict.
    Map,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    member: Member,
    /// How many of the same hash came before it.
    rank: usize,
}

/// The places that members of a set or map take.
#[derive(Debug)]
pub struct Table {
    kind: Kind,
    /// Number of the member that is there, from 1; 0 = free.
    places: Vec<u32>,
    members: Vec<Entry>,
    /// Members that are text, which take places that nobody can choose.
    texts: usize,
    steps: usize,
}

impl Table {
    /// Begins empty.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind, places: vec![0; 8], members: Vec::new(), texts: 0, steps: 0 }
    }

    /// Sets how many members are text.
    pub fn set_texts(&mut self, texts: usize) {
        self.texts = texts;
    }

    /// Adds a member.
    ///
    /// # Errors
    /// `Decode` when it would take too long.
    pub fn add(&mut self, hash: u64, member: Member, budget: &mut Budget) -> Result<()> {
        self.make_room();
        let mut rank = 0;
        let place = {
            let (places, members) = (&self.places, &self.members);
            walk(self.kind, places.len(), hash, |place| {
                self.steps += 1;
                let taken = places.get(place).copied().unwrap_or_default();
                match (taken as usize).checked_sub(1).and_then(|index| members.get(index)) {
                    None => Ok(true),
                    Some(twin) if twin.hash == hash => {
                        rank = rank.max(twin.rank + 1);
                        budget.take(&member, &twin.member).map(|()| false)
                    }
                    Some(_) => Ok(false),
                }
            })?
        };
        if rank >= MOST_EQUAL {
            let reason = format!("a set or map with more than {MOST_EQUAL} members of one hash");
            return Err(refused(reason));
        }
        let each = if self.kind == Kind::Set { MOST_STEPS * 10 } else { MOST_STEPS };
        if self.steps > FREE_STEPS + each * (self.members.len() + 1) {
            return Err(refused("a set or map whose members collide".to_owned()));
        }
        self.members.push(Entry { hash, member, rank });
        self.take_place(place, self.members.len());
        Ok(())
    }

    fn take_place(&mut self, place: usize, number: usize) {
        if let Some(place) = self.places.get_mut(place) {
            *place = u32::try_from(number).unwrap_or(u32::MAX);
        }
    }

    /// Makes the table larger as CPython does.
    fn make_room(&mut self) {
        let before = self.places.len();
        let mut size = before;
        let used = self.members.len() + self.texts;
        loop {
            size = match self.kind {
                Kind::Map if used >= size * 2 / 3 => (size * 2 / 3 * 3).next_power_of_two(),
                Kind::Set if used * 5 >= (size - 1) * 3 => {
                    let wanted = if used > 50_000 { used * 2 } else { used * 4 };
                    (wanted + 1).next_power_of_two()
                }
                _ => break,
            };
        }
        if size == before {
            return;
        }
        let old = std::mem::replace(&mut self.places, vec![0; size]);
        match self.kind {
            // In order of insertion, and in order of the places.
            Kind::Map => (1..=self.members.len()).for_each(|number| self.move_in(number)),
            Kind::Set => old
                .into_iter()
                .filter(|number| *number > 0)
                .for_each(|number| self.move_in(number as usize)),
        }
    }

    fn move_in(&mut self, number: usize) {
        let Some(Entry { hash, .. }) = self.members.get(number - 1) else { return };
        let (places, steps) = (&self.places, &mut self.steps);
        let free = |place: usize| {
            *steps += 1;
            Ok(places.get(place).is_none_or(|number| *number == 0))
        };
        if let Ok(place) = walk(self.kind, self.places.len(), *hash, free) {
            self.take_place(place, number);
        }
    }
}

/// Goes through the places for a hash until `stop` says so; returns the last one.
fn walk(
    kind: Kind,
    size: usize,
    hash: u64,
    mut stop: impl FnMut(usize) -> Result<bool>,
) -> Result<usize> {
    /// A set looks at these behind each place, when the table is long enough.
    const NEIGHBOURS: u64 = 9;
    let mask = size as u64 - 1;
    let (mut at, mut perturb) = (hash & mask, hash);
    loop {
        let more = if kind == Kind::Set && at + NEIGHBOURS <= mask { NEIGHBOURS } else { 0 };
        for place in at..=at + more {
            let place = usize::try_from(place).unwrap_or_default();
            if stop(place)? {
                return Ok(place);
            }
        }
        perturb >>= 5;
        at = at.wrapping_mul(5).wrapping_add(1).wrapping_add(perturb) & mask;
    }
}

fn refused(reason: String) -> Error {
    Error::Decode { what: "payload", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(kind: Kind, hashes: impl Iterator<Item = u64>) -> Result<usize> {
        let (mut table, mut budget) = (Table::new(kind), Budget::new(1 << 20));
        for hash in hashes {
            table.add(hash, Member { bytes: 9, ..Member::default() }, &mut budget)?;
        }
        Ok(table.steps)
    }

    #[test]
    fn whatever_honest_senders_number_by_takes_few_steps() {
        for (kind, each) in [(Kind::Set, 320), (Kind::Map, 32)] {
            let most = 10_000 * each;
            for shift in (0..47).step_by(3) {
                let found = steps(kind, (0..10_000).map(|n| n << shift));
                assert!(found.as_ref().is_ok_and(|steps| *steps < most), "{shift} {found:?}");
            }
            for factor in [3, 10, 100, 1_000, 86_400, 1_000_000, 999_999_937] {
                let found = steps(kind, (0..10_000).map(|n| n * factor));
                assert!(found.as_ref().is_ok_and(|steps| *steps < most), "{factor} {found:?}");
            }
        }
    }

    #[test]
    fn equal_hashes_are_refused_beyond_64() {
        let spread = |n: u64| (n % 100).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for kind in [Kind::Set, Kind::Map] {
            assert!(steps(kind, (0..64).map(|_| 7)).is_ok());
            assert!(steps(kind, (0..65).map(|_| 7)).is_err());
            assert!(steps(kind, (0..6_400).map(spread)).is_ok());
            assert!(steps(kind, (0..6_500).map(spread)).is_err());
        }
    }

    #[test]
    fn members_that_walk_through_the_places_of_others_are_refused() {
        let size = 8_192_usize;
        let mask = size as u64 - 1;
        // First every third place, in the order in which a walk comes through them at its end.
        let first = std::iter::successors(Some(0_u64), |at| Some((at * 5 + 1) & mask));
        let mut chosen: Vec<u64> = first.take(size / 3 + 1).collect();
        let mut taken = vec![false; size];
        chosen.iter().for_each(|at| taken[usize::try_from(*at).unwrap_or_default()] = true);
        // Then those that begin at a place that is taken and walk through many others.
        for hash in size as u64..32 * size as u64 {
            let mut steps = 0;
            let place = walk(Kind::Map, size, hash, |place| {
                steps += 1;
                Ok(taken.get(place) == Some(&false))
            });
            if chosen.len() > 3_200 {
                break;
            }
            if steps > 250 {
                taken[place.unwrap_or_default()] = true;
                chosen.push(hash);
            }
        }
        assert!(chosen.len() > 3_000, "{}", chosen.len());
        assert!(steps(Kind::Map, chosen.into_iter()).is_err());
    }

    #[test]
    fn long_and_deep_members_of_one_hash_cost_more() {
        let add = |member: Member, count: usize| {
            let (mut table, mut budget) = (Table::new(Kind::Set), Budget::new(100_000));
            (0..count).try_for_each(|_| table.add(1, member, &mut budget))
        };
        let flat = Member { bytes: 100, ..Member::default() };
        assert!(add(flat, 64).is_ok());
        let frozen = Frozen::default().around(100);
        assert!(add(Member { frozen: Frozen::default().around(1), ..flat }, 64).is_ok());
        assert!(add(Member { frozen, ..flat }, 64).is_err());
        assert!(add(Member { frozen, ..flat }, 20).is_ok());
        let deeper = Member { frozen: frozen.around(1), ..flat };
        assert!(add(deeper, 4).is_ok() && add(deeper, 20).is_err());
        let large = Member { bytes: 50_000, is_mixed: true, ..Member::default() };
        assert!(add(large, 2).is_err());
        assert!(add(Member { is_mixed: false, ..large }, 2).is_ok());
    }
}
