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
pub(super) const MOST_EQUAL: usize = 64;

/// Most places to look at for one member, on average.
const MOST_STEPS: usize = 64;
/// Places to look at that are given to every collection.
const FREE_STEPS: usize = 1 << 12;

/// A member from here on is long to compare.
pub(super) const LONG: usize = 512;

/// What comparing members of one hash may cost in one message, in bytes that are compared.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn new(message: usize) -> Self {
        Self((message as u64).saturating_mul(64).saturating_add(1 << 16))
    }

    /// Takes what it costs to compare two members of one hash.
    fn take(&mut self, one: &Member, other: &Member) -> Result<()> {
        let bytes = u64::from(one.bytes) + u64::from(other.bytes);
        // An item of a frozenset is compared with each of its hash in the other one.
        let mut cost = bytes;
        for _ in 0..one.frozen.max(other.frozen) {
            cost = cost.saturating_mul(MOST_EQUAL as u64);
        }
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

/// What is known of a member before it is inserted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Member {
    /// How many bytes of the message it took.
    pub(super) bytes: u32,
    /// How deep frozensets are nested in it.
    pub(super) frozen: u8,
    /// The message holds long integers and decimals.
    pub(super) is_mixed: bool,
}

/// What a table belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Set,
    Map,
}

/// The places that members of a set or map take.
#[derive(Debug)]
pub(super) struct Table {
    kind: Kind,
    /// Number of the member that is there, from 1; 0 = free.
    places: Vec<u32>,
    members: Vec<(u64, Member)>,
    /// Members that are text, which take places that nobody can choose.
    texts: usize,
    steps: usize,
}

impl Table {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, places: vec![0; 8], members: Vec::new(), texts: 0, steps: 0 }
    }

    /// Sets how many members are text.
    pub(super) fn set_texts(&mut self, texts: usize) {
        self.texts = texts;
    }

    /// Adds a member.
    ///
    /// # Errors
    /// `Decode` when it would take too long.
    pub(super) fn add(&mut self, hash: u64, member: Member, budget: &mut Budget) -> Result<()> {
        self.make_room();
        let mut equal = 0;
        let place = {
            let (places, members) = (&self.places, &self.members);
            walk(self.kind, places.len(), hash, |place| {
                self.steps += 1;
                let taken = places.get(place).copied().unwrap_or_default();
                match (taken as usize).checked_sub(1).and_then(|index| members.get(index)) {
                    None => Ok(true),
                    Some((other, twin)) if *other == hash => {
                        equal += 1;
                        budget.take(&member, twin).map(|()| false)
                    }
                    Some(_) => Ok(false),
                }
            })?
        };
        if equal >= MOST_EQUAL {
            let reason = format!("a set or map with more than {MOST_EQUAL} members of one hash");
            return Err(refused(reason));
        }
        if self.steps > FREE_STEPS + MOST_STEPS * (self.members.len() + 1) {
            return Err(refused("a set or map whose members collide".to_owned()));
        }
        self.members.push((hash, member));
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
        let Some((hash, _)) = self.members.get(number - 1) else { return };
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
        for kind in [Kind::Set, Kind::Map] {
            for shift in 0..47 {
                let found = steps(kind, (0..50_000).map(|n| n << shift));
                assert!(
                    found.as_ref().is_ok_and(|steps| *steps < 50_000 * 16),
                    "{shift} {found:?}"
                );
            }
            for factor in [3, 10, 100, 1_000, 86_400, 1_000_000, 999_999_937] {
                let found = steps(kind, (0..50_000).map(|n| n * factor));
                assert!(
                    found.as_ref().is_ok_and(|steps| *steps < 50_000 * 16),
                    "{factor} {found:?}"
                );
            }
        }
    }

    #[test]
    fn equal_hashes_are_refused_beyond_64() {
        for kind in [Kind::Set, Kind::Map] {
            assert!(steps(kind, (0..64).map(|_| 7)).is_ok());
            assert!(steps(kind, (0..65).map(|_| 7)).is_err());
            assert!(steps(kind, (0..6_400).map(|n| n % 100)).is_ok());
            assert!(steps(kind, (0..6_500).map(|n| n % 100)).is_err());
        }
    }

    /// Hashes of which each walks through the places of those before it, although all differ.
    fn chain(kind: Kind, count: u64, size: u64) -> Vec<u64> {
        let mut taken = vec![false; usize::try_from(size).unwrap_or_default()];
        let mut found = Vec::new();
        let mut hash = 0_u64;
        while (found.len() as u64) < count {
            hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut long = 0;
            let place = walk(kind, taken.len(), hash, |place| {
                long += 1;
                Ok(!taken.get(place).copied().unwrap_or(true))
            });
            let Ok(place) = place else { break };
            // The first ones fill the table; the later ones are chosen for their long way.
            if found.len() as u64 > count / 2 && long < 300 {
                continue;
            }
            if let Some(place) = taken.get_mut(place) {
                *place = true;
            }
            found.push(hash);
        }
        found
    }

    #[test]
    fn members_that_walk_through_the_places_of_others_are_refused() {
        // 10,000 members fill half of a map of 32,768 places at most; a chain needs a fuller one.
        let chosen = chain(Kind::Map, 5_400, 8_192);
        assert_eq!(chosen.len(), 5_400);
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
        assert!(add(Member { frozen: 1, ..flat }, 64).is_err());
        assert!(add(Member { frozen: 1, ..flat }, 20).is_ok());
        assert!(add(Member { frozen: 2, ..flat }, 5).is_ok());
        assert!(add(Member { frozen: 2, ..flat }, 20).is_err());
        let large = Member { bytes: 50_000, is_mixed: true, frozen: 0 };
        assert!(add(large, 2).is_err());
        assert!(add(Member { is_mixed: false, ..large }, 2).is_ok());
    }
}
