//! Builds one msgpack value while the sizes of its containers are still unknown.

use crate::codec::write;

/// A value under construction. A container begins with a header of one byte; the few that turn out
/// to need a longer one are moved apart in one pass at the end, so the work stays linear.
#[derive(Debug, Default)]
pub(super) struct Packer {
    pub(super) out: Vec<u8>,
    long: Vec<Long>,
}

/// A container of more than 15 elements.
#[derive(Debug)]
struct Long {
    at: usize,
    count: usize,
    is_map: bool,
}

/// Where a container began.
#[derive(Debug)]
pub(super) struct Open {
    at: usize,
    is_map: bool,
}

impl Packer {
    /// Begins an array or a map.
    pub(super) fn open(&mut self, is_map: bool) -> Open {
        let at = self.out.len();
        self.out.push(0);
        Open { at, is_map }
    }

    /// Ends it.
    pub(super) fn close(&mut self, open: &Open, count: usize) {
        let Open { at, is_map } = *open;
        match (u8::try_from(count), self.out.get_mut(at)) {
            (Ok(count @ 0..16), Some(header)) => *header = count | if is_map { 0x80 } else { 0x90 },
            _ => self.long.push(Long { at, count, is_map }),
        }
    }

    /// Returns the bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.long.sort_unstable_by_key(|long| long.at);
        let mut unmoved = self.out.len();
        let more: usize =
            self.long.iter().map(|long| write::container_header(long.count) - 1).sum();
        let mut end = unmoved + more;
        self.out.resize(end, 0);
        let mut header = Vec::with_capacity(5);
        for long in self.long.iter().rev() {
            let content = long.at + 1..unmoved;
            end -= content.len();
            self.out.copy_within(content, end);
            header.clear();
            match long.is_map {
                true => write::map(&mut header, long.count),
                false => write::array(&mut header, long.count),
            }
            end -= header.len();
            if let Some(place) = self.out.get_mut(end..end + header.len()) {
                place.copy_from_slice(&header);
            }
            unmoved = long.at;
        }
        self.out
    }
}
